"""What a trainer is."""

from typing import Protocol

from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.client_state import ClientVectors
from fedsim.train.hooked import ClientMemory
from fedsim.train.plan import Plan


class Trainer(Protocol):
    """Trains the clients of a plan; at most `num_slots` of them side by side, which may be lowered between rounds."""

    num_slots: int
    expected_history: int  # a trial: lay out memory as if a client saw at least so many samples

    @property
    def memory(self) -> ClientMemory:
        """What its clients keep."""
        ...

    @property
    def clients(self) -> ClientVectors | None:
        """What its clients keep from round to round; None where they keep nothing."""
        ...

    def history_bytes(self, steps: int, batch: int) -> int:
        """What one slot takes, beyond a single step, to remember `steps` minibatches of `batch` samples."""
        ...

    def train(self, plan: Plan, broadcast: Tensor, scale: float) -> PartialAverage:
        """Train every client of the plan from `broadcast` (P + Q + ...,) and average the updates."""
        ...

    def close(self) -> None:
        """End what the trainer has started; it cannot train any more."""
        ...
