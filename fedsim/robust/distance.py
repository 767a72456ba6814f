"""Rules that choose updates by their distances from each other. Every client counts the same.

Krum and Multi-Krum: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent".
Bulyan: El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium", section 4.

Distances are squared and Euclidean, over the whole update. Ties go to the client of the lower number.
"""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from fedsim.robust.base import Aggregator, Storage
from fedsim.robust.store import UpdateStore


def krum_scores(distances: Tensor, num_neighbours: int) -> Tensor:
    """(m, m) squared distances to (m,) sums over each row's nearest others."""
    others = distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, :num_neighbours].sum(1)


def _lowest(scores: Tensor, count: int) -> Tensor:
    """(count,) sorted indices of the lowest scores; the lower index first among equals."""
    return scores.sort(stable=True).indices[:count].sort().values


def _require(rule: str, num_attackers: int, least: int, formula: str) -> Callable[[int], None]:
    if num_attackers < 0:
        raise ValueError(f"aggregator.num_attackers must not be negative, got {num_attackers}")

    def require(num_updates: int) -> None:
        if num_updates < least:
            raise ValueError(
                f"aggregator={rule} with num_attackers={num_attackers} needs at least {formula} = {least} updates a "
                f"round, got {num_updates}: raise server.clients_per_round or lower aggregator.num_attackers"
            )

    return require


def krum(num_attackers: int = 1, **storage: Unpack[Storage]) -> Aggregator:
    """The one update that is nearest to its n - f - 2 nearest neighbours.

    Args:
        num_attackers: f, the attackers of a round that are withstood; n >= 2 f + 3.
        storage: memory_mib, spill_dir (`Aggregator`).
    """

    def rule(updates: UpdateStore) -> Tensor:
        scores = krum_scores(updates.squared_distances(), len(updates) - num_attackers - 2)
        return updates.map_columns(lambda rows: rows[int(_lowest(scores, 1))])

    require = _require("krum", num_attackers, 2 * num_attackers + 3, "2 f + 3")
    return Aggregator(name="krum", rule=rule, require=require, **storage)


def multi_krum(num_attackers: int = 1, num_selected: int | None = None, **storage: Unpack[Storage]) -> Aggregator:
    """The mean of the updates with the lowest of Krum's scores.

    Args:
        num_attackers: f, the attackers of a round that are withstood; n >= 2 f + 3.
        num_selected: how many are averaged; None: n - f - 2, the most for which El Mhamdi et al. prove resilience.
        storage: memory_mib, spill_dir (`Aggregator`).
    """
    if num_selected is not None and num_selected < 1:
        raise ValueError(f"aggregator.num_selected must be at least 1 or null, got {num_selected}")
    enough = _require("multi_krum", num_attackers, 2 * num_attackers + 3, "2 f + 3")

    def require(num_updates: int) -> None:
        enough(num_updates)
        if num_selected is not None and num_selected > num_updates:
            raise ValueError(f"aggregator.num_selected={num_selected}, but a round has {num_updates} updates")

    def rule(updates: UpdateStore) -> Tensor:
        neighbours = len(updates) - num_attackers - 2
        chosen = _lowest(krum_scores(updates.squared_distances(), neighbours), num_selected or neighbours)
        return updates.map_columns(lambda rows: rows[chosen].double().mean(0))

    return Aggregator(name="multi_krum", rule=rule, require=require, **storage)


def bulyan_selection(distances: Tensor, num_attackers: int) -> Tensor:
    """Indices of the n - 2 f updates that Krum chooses one after another, each from those that are left.

    Of r that are left, the scores are sums over the r - f - 2 nearest, but over at least one.
    """
    left = torch.arange(len(distances), device=distances.device)
    chosen = []
    while len(chosen) < len(distances) - 2 * num_attackers:
        scores = krum_scores(distances[left][:, left], max(1, len(left) - num_attackers - 2))
        best = int(_lowest(scores, 1))
        chosen.append(int(left[best]))
        left = torch.cat([left[:best], left[best + 1 :]])
    return torch.tensor(sorted(chosen), device=distances.device)


def bulyan(num_attackers: int = 1, **storage: Unpack[Storage]) -> Aggregator:
    """Krum chooses theta = n - 2 f updates; of these, each coordinate is the mean of the theta - 2 f values that are
    nearest to their median.

    Args:
        num_attackers: f, the attackers of a round that are withstood; n >= 4 f + 3.
        storage: memory_mib, spill_dir (`Aggregator`).
    """

    def rule(updates: UpdateStore) -> Tensor:
        chosen = bulyan_selection(updates.squared_distances(), num_attackers)
        count = len(chosen) - 2 * num_attackers

        def near_the_median(rows: Tensor) -> Tensor:
            values = rows[chosen].sort(dim=0).values.double()
            low, high = (len(values) - 1) // 2, len(values) // 2
            away = (values - (values[low] + values[high]) / 2).abs()
            return values.gather(0, away.sort(dim=0, stable=True).indices[:count]).mean(0)

        return updates.map_columns(near_the_median)

    require = _require("bulyan", num_attackers, 4 * num_attackers + 3, "4 f + 3")
    return Aggregator(name="bulyan", rule=rule, require=require, **storage)
