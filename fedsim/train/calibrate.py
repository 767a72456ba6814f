"""trainer=auto: measure a few steps of the real model and take the fastest trainer that fits the memory budget."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import psutil
import torch
from torch import Tensor

from fedsim import __version__
from fedsim.data.cache import cache_root
from fedsim.files import write_text
from fedsim.memory import out_of_memory
from fedsim.train.choice import Choice, threads_given
from fedsim.train.footprint import budget_bytes
from fedsim.train.graphs import CannotCapture
from fedsim.train.training import Training
from fedsim.train.trial import Trial, seconds_elsewhere

log = logging.getLogger("fedsim")

# Seconds of a serial trial of a small model.
_SHORT = 0.2
# So many slots are tried without fewer ones before.
_FEW = 16
# Cores that other programs may take from the threads of a trial.
_ELSEWHERE = 0.3
_DISTURBED = (
    "trainer=auto measured while other programs had the processor, so its choice may be poor, and is not remembered: "
    "set trainer=vectorized and trainer.num_slots to choose yourself"
)
# A share of the run that the trials may take.
_SHARE = 0.05


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
        training: Training,
        *,
        cohort: np.ndarray,
        broadcast: Tensor,
        scale: float,
        num_rounds: int,
    ) -> Choice:
        """Measure, or remember, and choose.

        Args:
            training: of the run.
            cohort: (m,) the clients of a typical round.
            broadcast, scale: of its job.
            num_rounds: rounds that the choice is made for.

        Raises:
            ValueError: not even one client at a time fits the budget.
        """
        budget = budget_bytes(self.memory_budget, broadcast.device)
        key = self._key(training, len(cohort), num_rounds)
        path = cache_root() / "trainer" / f"{key}.json"
        if self.cache and path.is_file():
            try:
                found = Choice(**{**json.loads(path.read_text()), "reason": f"measured before, see {path}"})
                if found.round_bytes() <= budget:
                    return found
                log.info(f"{path} chose a trainer that does not fit the memory budget now; measuring again")
            except (ValueError, TypeError, OSError):
                log.warning(f"{path} cannot be read; measuring again")
        base = Choice(num_slots=0, num_threads=1, reason="", precision=self.precision, cuda_graphs=self.cuda_graphs)
        trial = Trial(training, cohort, broadcast, scale, base=base)
        choice = self._measure(trial, budget, num_rounds)
        if choice.disturbed:
            log.warning(_DISTURBED)
        elif self.cache:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(asdict(choice), indent=1))
            except OSError as error:
                log.warning(f"the choice of trainer is not remembered ({error})")
        return choice

    def _key(self, training: Training, clients: int, num_rounds: int) -> str:
        dataset, model, device = training.dataset, training.model, training.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        sizes = dataset.train.sizes
        facts = [
            (__version__, torch.__version__, name, os.cpu_count(), threads_given()),
            (repr(model.module), dataset.input_shape, training.algorithm.name, repr(training.local)),
            (dataset.objective.name, getattr(getattr(dataset.objective.losses, "__code__", None), "co_code", b"")),
            (clients, num_rounds, training.uplink is not None, training.sum_dtype),
            (int(sizes.max()), round(float(sizes.mean()), 1), self.max_slots, self.max_seconds),
            (self.precision, self.cuda_graphs),
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def _measure(self, trial: Trial, budget: int, num_rounds: int) -> Choice:
        begin, ours = time.perf_counter(), [psutil.Process()]
        others = seconds_elsewhere(ours)
        threads = threads_given()
        rows: list[tuple[float, int, int, int]] = []  # seconds of a round, K, threads, bytes

        def measure(num_slots: int, count: int) -> bool:
            """Add a row; whether it may still be worth going on."""
            torch.set_num_threads(count)
            need = trial.footprint(num_slots)
            if need.extra > budget:
                if num_slots == 0:
                    less = need.fewer_steps(trial.local) or "local.batch_size, choose a smaller model"
                    raise ValueError(
                        f"one client at a time needs {need}, and {budget / 2**20:,.0f} MiB may be used: lower {less}, "
                        "or raise trainer.memory_budget"
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
                        continue
                except CannotCapture:
                    raise
                except ValueError as error:  # the model cannot be batched
                    log.info(str(error))
                    break
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    log.info(f"trainer=auto ran out of memory with {n} slots")  # which libraries took for themselves
                    continue
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
        waited = time.perf_counter() - begin
        spare = (os.cpu_count() or 1) - threads
        taken = (seconds_elsewhere(ours) - others) / waited
        disturbed = waited > _SHORT and taken > spare + _ELSEWHERE and trial.broadcast.device.type == "cpu"
        return replace(
            trial.base, num_slots=num_slots, num_threads=count, reason=reason, table=table, disturbed=disturbed
        )


def _thread_counts(most: int, device: torch.device) -> list[int]:
    """Intra-operator threads worth a trial, small models gain nothing from many."""
    return [most] if device.type == "cuda" or most == 1 else sorted({most, max(1, most // 4), 1}, reverse=True)


def _slot_counts(most: int) -> Iterator[int]:
    """4, 16 ... and `most`, since time may be short and a single slot is seldom the answer; a few clients all at once
    first."""
    if most <= _FEW:
        yield most
    n = 4
    while n < most:
        yield n
        n *= 4
    if most > _FEW:
        yield most
