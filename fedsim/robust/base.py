"""What an aggregator is: a frozen record. Its default, the mean, needs no update to be kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from fedsim.robust.store import UpdateStore


class Storage(TypedDict, total=False):
    """Where a robust rule keeps a round's updates: see `Aggregator`."""

    memory_mib: float
    spill_dir: str | None


@dataclass(frozen=True, kw_only=True)
class Aggregator:
    """How the updates of a round become one.

    Attributes:
        name: as in the configuration.
        rule: the kept updates (m, P + Q) of a round -> (P + Q,) float64 on their device. None: the mean, which
            streams through `fedsim.aggregate.OnlineAverage` and keeps no update.
        by_element: whether an element of the result depends on the same element of the updates alone.
        require: raises ValueError for a number of updates m that the rule cannot serve.
        equal_weights: every update counts the same, whatever its client's number of samples.
        memory_mib: RAM for the updates of a round; those beyond it go to a temporary file.
        spill_dir: folder of that file; None: the system's folder for temporary files.
    """

    name: str
    rule: Callable[[UpdateStore], Tensor] | None = None
    by_element: bool = False
    require: Callable[[int], None] = lambda num_updates: None
    equal_weights: bool = False
    memory_mib: float = 1024.0
    spill_dir: str | None = None

    def __post_init__(self) -> None:
        if not self.memory_mib >= 0:
            raise ValueError(f"aggregator.memory_mib must not be negative, got {self.memory_mib}")
        if self.spill_dir is not None and not Path(self.spill_dir).is_dir():
            raise ValueError(f"aggregator.spill_dir={self.spill_dir} is not a folder; make it or set it to null")


def mean(equal_weights: bool = False) -> Aggregator:
    """The mean, weighted by the clients' training samples (McMahan et al. 2017).

    Args:
        equal_weights: every client counts the same instead.
    """
    return Aggregator(name="mean", equal_weights=equal_weights)
