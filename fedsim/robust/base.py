"""What an aggregator is: a frozen record. Its default, the mean, needs no update to be kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
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
        dtype: of the mean's running sum, float64 or float32 (`fedsim.aggregate`).
        memory_mib: RAM for the updates of a round; those beyond it go to a temporary file.
        spill_dir: folder of that file; None: the system's folder for temporary files.
    """

    name: str
    rule: Callable[[UpdateStore], Tensor] | None = None
    by_element: bool = False
    require: Callable[[int], None] = lambda num_updates: None
    equal_weights: bool = False
    dtype: torch.dtype = torch.float64
    memory_mib: float = 1024.0
    spill_dir: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float64, torch.float32):
            raise ValueError(f"aggregator.dtype must be float64 or float32, got {self.dtype}")
        if self.rule is not None and self.dtype != torch.float64:
            raise ValueError(f"aggregator={self.name} has no running sum, and takes no dtype: leave it out")
        if not self.memory_mib >= 0:
            raise ValueError(f"aggregator.memory_mib must not be negative, got {self.memory_mib}")
        if self.spill_dir is not None and not Path(self.spill_dir).is_dir():
            raise ValueError(f"aggregator.spill_dir={self.spill_dir} is not a folder; make it or set it to null")

    @property
    def plain(self) -> bool:
        """Whether this is the mean weighted by samples, for which nobody needs to see an update whole."""
        return replace(self, dtype=torch.float64) == mean()


def mean(equal_weights: bool = False, dtype: Literal["float64", "float32"] = "float64") -> Aggregator:
    """The mean, weighted by the clients' training samples (McMahan et al. 2017).

    Args:
        equal_weights: every client counts the same instead.
        dtype: of its running sum. "float64": the result does not depend on the order of the clients. "float32": half of
            the memory, and of what workers send, and the order moves the result by rounding.

    Raises:
        ValueError: another dtype.
    """
    known = {"float64": torch.float64, "float32": torch.float32}
    if dtype not in known:
        raise ValueError(f"aggregator.dtype must be one of {', '.join(known)}, got {dtype}")
    return Aggregator(name="mean", equal_weights=equal_weights, dtype=known[dtype])
