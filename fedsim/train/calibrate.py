"""trainer=auto: measure a few steps of the real model and take the fastest trainer that fits the memory budget.

Clients take different numbers of steps, so a round is mostly steps with fewer busy slots than K. What is measured is
the time of a step with n busy slots, for growing n, and what a client costs besides; from both follows the time of a
round for every K, through the schedule that the round would have.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import __version__
from fedsim.algorithms.base import Algorithm
from fedsim.config import LocalConfig
from fedsim.data.cache import cache_root
from fedsim.data.federated import FederatedDataset
from fedsim.files import write_text
from fedsim.train.base import Trainer
from fedsim.train.footprint import Footprint, budget_bytes, footprint, short_plan
from fedsim.train.plan import Plan, busy_slots, count_steps
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.vector import FlatModel

log = logging.getLogger("fedsim")

# A trial takes this many steps after the first.
_STEPS = 2
# Seconds of a serial trial of a small model.
_SHORT = 0.2
# The processor time of a thread that has the processor to itself, as a share of what the clock says.
_ALONE = 0.7
_DISTURBED = (
    "trainer=auto measured while other programs had the processor, so its choice may be poor: set trainer=vectorized "
    "and trainer.num_slots to choose yourself"
)
# A share of the run that the trials may take.
_SHARE = 0.05


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


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Chooses the trainer of a run.

    Attributes:
        memory_budget: what a round may take: a share (float up to 1.0) of free memory, or bytes.
        max_slots: no more slots than this.
        max_seconds: of measuring; nor does it take more than 5 % of what the run would take serially.
        cache: remember the choice for this model, shape and machine, so that the same command gives the same
            bits again: trainers agree to rounding only.
        precision, cuda_graphs: as for the trainers.
    """

    memory_budget: float | int = 0.8
    max_slots: int = 256
    max_seconds: float = 3.0
    cache: bool = True
    precision: str = "float32"
    cuda_graphs: bool | None = None

    def __post_init__(self) -> None:
        if self.max_slots < 1:
            raise ValueError(f"trainer.max_slots must be at least 1, got {self.max_slots}")
        if not self.max_seconds > 0:
            raise ValueError(f"trainer.max_seconds must be positive, got {self.max_seconds}")

    def choose(
        self,
        dataset: FederatedDataset,
        model: FlatModel,
        algorithm: Algorithm,
        local: LocalConfig,
        *,
        cohort: np.ndarray,
        broadcast: Tensor,
        scale: float,
        num_rounds: int,
        whole: bool = False,
    ) -> Choice:
        """Measure, or remember, and choose.

        Args:
            dataset, model, algorithm, local: the run.
            cohort: (m,) the clients of a typical round.
            broadcast, scale: of its job.
            num_rounds: rounds that the choice is made for.
            whole: every update will be needed as a whole vector, so nothing is factored.

        Raises:
            ValueError: not even one client at a time fits the budget.
        """
        budget = budget_bytes(self.memory_budget, broadcast.device)
        key = self._key(dataset, model, algorithm, local, len(cohort), num_rounds, whole)
        path = cache_root() / "trainer" / f"{key}.json"
        if self.cache and path.is_file():
            try:
                found = Choice(**{**json.loads(path.read_text()), "reason": f"measured before, see {path}"})
                if found.round_bytes() <= budget:
                    if found.disturbed:
                        log.warning(f"{_DISTURBED}; delete {path} to measure again")
                    return found
                log.info(f"{path} chose a trainer that does not fit the memory budget now; measuring again")
            except (ValueError, TypeError, OSError):
                log.warning(f"{path} cannot be read; measuring again")
        base = Choice(num_slots=0, num_threads=1, reason="", precision=self.precision, cuda_graphs=self.cuda_graphs)
        trial = _Trial(dataset, model, algorithm, local, cohort, broadcast, scale, whole, base=base)
        choice = self._measure(trial, budget, num_rounds)
        if choice.disturbed:
            log.warning(_DISTURBED)
        if self.cache:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(asdict(choice), indent=1))
            except OSError as error:
                log.warning(f"the choice of trainer is not remembered ({error})")
        return choice

    def _key(
        self,
        dataset: FederatedDataset,
        model: FlatModel,
        algorithm: Algorithm,
        local: LocalConfig,
        clients: int,
        num_rounds: int,
        whole: bool,
    ) -> str:
        device = model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        sizes = dataset.train.sizes
        facts = [
            (__version__, torch.__version__, name, os.cpu_count(), threads_given()),
            (repr(model.module), dataset.input_shape, algorithm.name, repr(local), clients, num_rounds, whole),
            (int(sizes.max()), round(float(sizes.mean()), 1), self.max_slots, self.max_seconds),
            (self.precision, self.cuda_graphs),
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def _measure(self, trial: "_Trial", budget: int, num_rounds: int) -> Choice:
        begin, processor = time.perf_counter(), time.process_time()
        threads = threads_given()
        rows: list[tuple[float, int, int, int]] = []  # seconds of a round, K, threads, bytes

        def measure(num_slots: int, count: int) -> bool:
            """Add a row; whether it may still be worth going on."""
            torch.set_num_threads(count)
            need = trial.footprint(num_slots)
            if need.extra > budget:
                if num_slots == 0:
                    raise ValueError(
                        f"one client at a time needs {need}, and {budget / 2**20:,.0f} MiB may be used: lower "
                        "local.batch_size, choose a smaller model, or raise trainer.memory_budget"
                    )
                return False
            rows.append((trial.round_seconds(num_slots, count), num_slots, count, need.extra))
            return True

        def in_time() -> bool:
            """Whether a trial that takes twice the last one still fits."""
            return time.perf_counter() - begin + 2 * trial.last < allowed

        try:
            measure(0, threads)
            allowed = min(self.max_seconds, _SHARE * num_rounds * rows[0][0])
            for count in _thread_counts(threads, trial.broadcast.device)[1:]:
                if trial.last < _SHORT and in_time():  # only small models are faster with fewer threads
                    measure(0, count)
            count, worse = min(rows)[2], 0
            for n in _slot_counts(min(self.max_slots, len(trial.cohort))):
                if worse == 2 or not in_time():
                    break
                try:
                    if not measure(n, count):
                        break
                except ValueError as error:  # the model cannot be batched
                    log.info(str(error))
                    break
                worse = worse + 1 if rows[-1] != min(rows) else 0
            best = min(rows)
            for count in _thread_counts(threads, trial.broadcast.device):
                if best[1] and count != best[2] and in_time():
                    measure(best[1], count)
        finally:
            torch.set_num_threads(threads)
        seconds, num_slots, count, _ = min(rows)
        table = [
            {
                "trainer": f"vectorized-{k}" if k else "serial",
                "num_threads": t,
                "round_seconds": round(s, 4),
                "round_mib": round(b / 2**20, 1),
            }
            for s, k, t, b in sorted(rows, key=lambda row: (row[2], row[1]))
        ]
        reason = f"about {seconds:.3g} s a round, fastest of {len(rows)} measured in {trial.seconds:.1f} s"
        spent, waited = time.process_time() - processor, time.perf_counter() - begin
        disturbed = waited > _SHORT and spent < _ALONE * waited and trial.broadcast.device.type == "cpu"
        return replace(
            trial.base, num_slots=num_slots, num_threads=count, reason=reason, table=table, disturbed=disturbed
        )


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


def _thread_counts(most: int, device: torch.device) -> list[int]:
    """Intra-operator threads worth a trial, small models gain nothing from many."""
    return [most] if device.type == "cuda" or most == 1 else sorted({most, max(1, most // 4), 1}, reverse=True)


def _slot_counts(most: int) -> Iterator[int]:
    """4, 16 ... and `most`: time may be short, and a single slot is seldom the answer."""
    n = 4
    while n < most:
        yield n
        n *= 4
    yield most


class _Trial:
    """Short rounds of the run's own clients, whose results are thrown away."""

    def __init__(
        self,
        dataset: FederatedDataset,
        model: FlatModel,
        algorithm: Algorithm,
        local: LocalConfig,
        cohort: np.ndarray,
        broadcast: Tensor,
        scale: float,
        whole: bool = False,
        *,
        base: Choice = Choice(num_slots=0, num_threads=1, reason=""),
    ) -> None:
        self.dataset, self.model, self.algorithm, self.whole, self.base = dataset, model, algorithm, whole, base
        self.local = replace(local, learning_rate=min(local.learning_rate, 1e-6))  # a trial must not diverge
        cohort = cohort[dataset.train.sizes[cohort] > 0]
        sizes = dataset.train.sizes[cohort]
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
            factory = replace(self.base, num_slots=num_slots).trainer()
            extra = {"factor": False} if batched and self.whole else {}
            trainer = factory(self.dataset, self.model, self.algorithm, self.local, seed=0, **extra)
            self.trainers[batched] = trainer
        if batched:
            self.trainers[batched].num_slots = num_slots
        return self.trainers[batched]

    def footprint(self, num_slots: int) -> Footprint:
        """What a round takes; 0 slots: serial."""
        batched = num_slots > 0
        if batched not in self.needs:
            begin = time.perf_counter()
            trainer = self._trainer(2 if batched else 0)
            arguments = (self.dataset.train, self.cohort, self.local, self.broadcast, self.scale)
            self.needs[batched] = footprint(trainer, *arguments)
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
            self._time(trainer, short_plan(self.dataset.train, cohort, self.local, trainer, steps=s))
            for s in (1, 1 + _STEPS)
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
