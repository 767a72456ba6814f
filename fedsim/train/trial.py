"""How long a round would take, from short rounds of the run's own clients.

Clients take different numbers of steps, so a round is mostly steps with fewer busy slots than K. What is measured is
the time of a step with n busy slots, for growing n, and what a client costs besides; from both follows the time of a
round for every K, through the schedule that the round would have.
"""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import psutil
import torch
from torch import Tensor

from fedsim.train.base import Trainer
from fedsim.train.choice import Choice
from fedsim.train.footprint import Footprint, footprint, short_plan
from fedsim.train.plan import Plan, busy_slots, count_steps
from fedsim.train.training import Training

# A trial takes this many steps after the first.
_STEPS = 2


def seconds_elsewhere(processes: Iterable[psutil.Process]) -> float:
    """Processor seconds, since the machine's start, of all but these processes: other programs', and what the host of a
    virtual machine gave to others."""
    spent = psutil.cpu_times()._asdict()
    # what guests take is part of user and nice
    busy = sum(seconds for what, seconds in spent.items() if what not in ("idle", "iowait", "guest", "guest_nice"))
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it has ended
            mine = process.cpu_times()
            busy -= mine.user + mine.system
    return busy


class Trial:
    """Short rounds of the run's own clients, whose results are thrown away.

    Args:
        training: of the run.
        cohort: (m,) int64 clients of a typical round.
        broadcast: (P + Q + ...,) as in a job.
        scale: of its average.
        base: precision and CUDA graphs of every trainer that is tried.

    Attributes:
        steps: (m,) int64 local steps of each client, longest first.
        seconds, last: of measuring in all, and of the last trial.
    """

    def __init__(
        self,
        training: Training,
        cohort: np.ndarray,
        broadcast: Tensor,
        scale: float,
        *,
        base: Choice = Choice(num_slots=0, num_threads=1, reason=""),  # noqa: B008 (frozen)
    ) -> None:
        self.split, local = training.dataset.train, training.local
        self.local = replace(local, learning_rate=min(local.learning_rate, 1e-6))  # a trial must not diverge
        self.training, self.base = replace(training, local=self.local), base
        cohort = cohort[self.split.sizes[cohort] > 0]
        sizes = self.split.sizes[cohort]
        longest_first = np.argsort(-sizes, kind="stable")
        self.cohort, self.broadcast, self.scale = cohort[longest_first], broadcast, scale
        self.batch, _, self.steps = count_steps(sizes[longest_first], local)
        self.seconds = self.last = 0.0
        self.trainers: dict[bool, Trainer] = {}
        self.needs: dict[bool, Footprint] = {}
        self.measured: dict[tuple[int, int], tuple[float, float]] = {}

    def _trainer(self, num_slots: int) -> Trainer:
        """One of each kind serves all trials."""
        batched = num_slots > 0
        if batched not in self.trainers:
            self.trainers[batched] = self.training.trial(replace(self.base, num_slots=num_slots).trainer())
        if batched:
            self.trainers[batched].num_slots = num_slots
        return self.trainers[batched]

    def footprint(self, num_slots: int) -> Footprint:
        """What a round takes; 0 slots: serial."""
        batched = num_slots > 0
        if batched not in self.needs:
            begin = time.perf_counter()
            trainer = self._trainer(2 if batched else 0)
            self.needs[batched] = footprint(trainer, self.split, self.cohort, self.local, self.broadcast, self.scale)
            self.seconds += time.perf_counter() - begin
        return replace(self.needs[batched], num_slots=max(1, num_slots))

    def round_seconds(self, num_slots: int, num_threads: int) -> float:
        """Seconds of a round with K slots; 0: serial."""
        begin = time.perf_counter()
        trainer, n = self._trainer(num_slots), max(1, num_slots)
        trainer.expected_history = int(self.steps.max()) * self.batch
        # clients from everywhere in the cohort: the longest alone would have full minibatches
        cohort = self.cohort[np.linspace(0, len(self.cohort) - 1, n).astype(np.int64)]
        short, long = (
            self._time(trainer, short_plan(self.split, cohort, self.local, trainer, steps=s)) for s in (1, 1 + _STEPS)
        )
        step = max(long - short, 0.1 * short) / _STEPS
        self.measured[num_slots, num_threads] = step, max(0.0, short - step) / n
        self.last = time.perf_counter() - begin
        self.seconds += self.last
        busy = busy_slots(self.steps, n)
        known = sorted(k for k, threads in self.measured if k and threads == num_threads)
        times = [self.measured[k, num_threads][0] for k in known]
        serial = self.measured.get((0, num_threads))
        if num_slots and serial is not None and known[0] > 1:  # a round ends with few busy slots
            known, times = [1, *known], [min(serial[0], times[0]), *times]
        steps = np.interp(busy, known, times).sum() if num_slots else step * len(busy)
        return float(steps) + self.measured[num_slots, num_threads][1] * len(self.cohort)

    def _time(self, trainer: Trainer, plan: Plan) -> float:
        times: list[float] = []
        least = 3 if self.broadcast.is_cuda else 1  # the first time a step is prepared, the second time captured
        while len(times) < least or (len(times) < 3 and times[0] < 0.02):
            begin = time.perf_counter()
            trainer.train(plan, self.broadcast, self.scale)
            if self.broadcast.is_cuda:
                torch.cuda.synchronize(self.broadcast.device)
            times.append(time.perf_counter() - begin)
        return min(times)
