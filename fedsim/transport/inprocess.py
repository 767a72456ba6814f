"""The round runs in this process, in one trainer."""

from typing import Protocol

from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.client_state import ClientVectors
from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.train.plan import Plan, make_plan
from fedsim.transport.base import Job


class Trainer(Protocol):
    """Trains the clients of a plan; `num_slots` of them side by side."""

    num_slots: int

    @property
    def clients(self) -> ClientVectors | None:
        """What its clients keep from round to round; None where they keep nothing."""
        ...

    def train(self, plan: Plan, broadcast: Tensor, scale: float) -> PartialAverage: ...


class InProcess:
    """Plans the job for the trainer's slots and runs it."""

    def __init__(self, trainer: Trainer, split: Split, local: LocalConfig, *, seed: int) -> None:
        self.trainer, self.split, self.local, self.seed = trainer, split, local, seed

    def run_round(self, job: Job) -> PartialAverage:
        plan = make_plan(
            self.split,
            job.cohort,
            self.local,
            seed=self.seed,
            round=job.round,
            num_slots=self.trainer.num_slots,
            prelude=job.prelude,
        )
        return self.trainer.train(plan, job.broadcast, job.scale)
