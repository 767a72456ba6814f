"""The round runs in this process, in one trainer."""

import logging

import torch

from fedsim.aggregate import PartialAverage, merged
from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.memory import out_of_memory
from fedsim.train.base import Trainer
from fedsim.train.plan import make_plan
from fedsim.transport.base import Job, add_metrics, train_group

log = logging.getLogger("fedsim")


class InProcess:
    """Plans the job for the trainer's slots and runs it."""

    def __init__(self, trainer: Trainer, split: Split, local: LocalConfig, *, seed: int) -> None:
        self.trainer, self.split, self.local, self.seed = trainer, split, local, seed

    def run_round(self, job: Job) -> PartialAverage:
        if job.group_rounds > 1:
            average, metrics = None, []
            for group in job.groups():
                partial = train_group(self.run_round, group)
                average = merged(average, partial)
                metrics.append(partial.metrics)
                del partial  # before the next group's
            assert average is not None, "a job has a client with samples"
            return average.result(add_metrics(metrics))
        while True:
            plan = make_plan(
                self.split,
                job.cohort,
                self.local,
                seed=self.seed,
                round=job.round,
                num_slots=self.trainer.num_slots,
                prelude=job.prelude,
                max_steps=job.max_steps,
            )
            try:
                return self.trainer.train(plan, job.broadcast, job.scale)
            except RuntimeError as error:
                if plan.num_slots == 1 or not out_of_memory(error):
                    raise
                self.trainer.num_slots = plan.num_slots // 2
                log.warning(
                    f"round {job.round}: out of memory with {plan.num_slots} slots; "
                    f"the round starts again with {self.trainer.num_slots}"
                )
            # outside the handler, whose traceback holds the round's tensors
            if job.broadcast.is_cuda:
                torch.cuda.empty_cache()

    def close(self) -> None:
        """End what the trainer has started."""
        self.trainer.close()
