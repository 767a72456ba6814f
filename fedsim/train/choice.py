"""A trainer that was chosen, and PyTorch's number of threads that goes with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fedsim.train.base import Trainer
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A trainer, and why.

    Attributes:
        num_slots: K; 0 is the serial trainer.
        num_threads: PyTorch's intra-operator threads.
        precision, cuda_graphs: as for the trainers.
        disturbed: other programs had the processor while this was measured.
        table: what was measured: trainer, num_threads, predicted seconds and bytes of a round.
        reason: in words.
    """

    num_slots: int
    num_threads: int
    reason: str
    precision: str = "float32"
    cuda_graphs: bool | None = None
    disturbed: bool = False
    table: list[dict[str, Any]] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """What makes the trainer, without why it was chosen."""
        return {name: getattr(self, name) for name in ("num_slots", "num_threads", "precision", "cuda_graphs")}

    def trainer(self) -> Callable[..., Trainer]:
        """The factory of the trainer."""
        options = {"precision": self.precision, "cuda_graphs": self.cuda_graphs}
        if self.num_slots:
            return partial(VectorizedTrainer, num_slots=self.num_slots, **options)
        return partial(SerialTrainer, **options)

    def round_bytes(self) -> float:
        """What a round takes beyond what is there before, as measured; 0 where nothing was."""
        name = f"vectorized-{self.num_slots}" if self.num_slots else "serial"
        rows = [row for row in self.table if (row["trainer"], row["num_threads"]) == (name, self.num_threads)]
        return rows[0]["round_mib"] * 2**20 if rows else 0.0

    def __str__(self) -> str:
        name = f"trainer=vectorized trainer.num_slots={self.num_slots}" if self.num_slots else "trainer=serial"
        return f"{name} with {self.num_threads} thread{'s' * (self.num_threads > 1)} ({self.reason})"


_given: tuple[int, int] | None = None
"""PyTorch's threads before a choice set them, and what it set them to."""


def threads_given() -> int:
    """PyTorch's intra-operator threads as this process was given them, whatever an earlier run here has chosen."""
    now = torch.get_num_threads()
    return _given[0] if _given is not None and _given[1] == now else now


def set_threads(num_threads: int) -> None:
    """Use so many intra-operator threads, and remember how many were given."""
    global _given
    _given = threads_given(), num_threads
    torch.set_num_threads(num_threads)
