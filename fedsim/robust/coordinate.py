"""Rules that look at each coordinate by itself: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", definitions 1 (median) and 2 (trimmed mean). Every client counts the same, for a weight
is a thing that an attacker may claim."""

import math
from typing import Unpack

from torch import Tensor

from fedsim.robust.base import Aggregator, Storage
from fedsim.robust.store import UpdateStore


def median_of(rows: Tensor) -> Tensor:
    """(m, c) to (c,) float64: the median of each column, the mean of the two middle ones for an even m."""
    values = rows.sort(dim=0).values
    low, high = (len(rows) - 1) // 2, len(rows) // 2
    return (values[low].double() + values[high].double()) / 2


def median(**storage: Unpack[Storage]) -> Aggregator:
    """The median of each coordinate.

    Args:
        storage: memory_mib, spill_dir (`Aggregator`).
    """
    return Aggregator(name="median", rule=lambda updates: updates.map_columns(median_of), by_element=True, **storage)


def trimmed_mean(trim_fraction: float = 0.2, **storage: Unpack[Storage]) -> Aggregator:
    """The mean of each coordinate without its largest and its smallest values.

    Args:
        trim_fraction: beta of the paper, the share of values left out at each end, in [0, 0.5); the number is
            rounded up, so that beta m attackers can never keep a value. 0 is the mean with equal weights.
        storage: memory_mib, spill_dir (`Aggregator`).
    """
    if not 0 <= trim_fraction < 0.5:
        raise ValueError(f"aggregator.trim_fraction must be in [0, 0.5), got {trim_fraction}")

    def trim(num_updates: int) -> int:
        return math.ceil(trim_fraction * num_updates - 1e-9)  # 0.2 * 15 is a hair above 3

    def require(num_updates: int) -> None:
        if 2 * trim(num_updates) >= num_updates:
            raise ValueError(
                f"aggregator=trimmed_mean with trim_fraction={trim_fraction} leaves nothing of {num_updates} updates: "
                "lower it or raise server.clients_per_round"
            )

    def rule(updates: UpdateStore) -> Tensor:
        cut = trim(len(updates))
        return updates.map_columns(lambda rows: rows.sort(dim=0).values[cut : len(rows) - cut].double().mean(0))

    return Aggregator(name="trimmed_mean", rule=rule, by_element=True, require=require, **storage)
