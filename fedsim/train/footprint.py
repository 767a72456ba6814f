"""The memory planner: what a round with K slots will take, before it runs.

One step is taken with one client and with two, and the tensors alive at the peak are counted. Both numbers hold
everything a trainer makes (slots, gradients, momenta, activations, the running sum, the fold's blocks), and their
difference is what one more slot takes. Only the history of factored layers grows with the steps besides; it is known.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.memory import TensorMeter, free_memory_bytes, used_memory_bytes
from fedsim.train.base import Trainer
from fedsim.train.plan import Plan, count_steps, make_plan, plan_bytes
from fedsim.train.vectorized import VectorizedTrainer


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a round.

    Attributes:
        held: in use before the round: model, data, and on a CPU the program itself.
        fixed: what a round takes whatever the number of slots.
        slot: what each slot takes.
        num_slots: K.
        plan: the rows and losses of the round's minibatches.
    """

    held: int
    fixed: int
    slot: int
    num_slots: int
    plan: int = 0

    @property
    def extra(self) -> int:
        """Beyond what is held."""
        return self.fixed + self.plan + self.slot * self.num_slots

    @property
    def peak(self) -> int:
        """The predicted peak, comparable to `fedsim.memory.peak_memory_bytes`."""
        return self.held + self.extra

    def fewer_steps(self, local: LocalConfig) -> str | None:
        """The settings that make the plan shorter, where it takes the most; else None."""
        if self.plan <= self.extra // 2:
            return None
        name, number = ("num_epochs", local.num_epochs) if local.num_steps is None else ("num_steps", local.num_steps)
        steps = [f"local.{name} (now {number})"] if number > 1 else []
        return " or ".join([*steps, "server.clients_per_round"])

    def __str__(self) -> str:
        slots = f"{self.num_slots} slot{'s' * (self.num_slots != 1)}"
        parts = {"in use before": self.held, "for any round": self.fixed, f"for {slots}": self.slot * self.num_slots}
        if self.plan >= 1 << 20:
            parts["for the plan"] = self.plan
        return f"{_mib(self.peak)}: " + ", ".join(f"{_mib(size)} {name}" for name, size in parts.items())


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def budget_bytes(budget: float | int | None, device: torch.device) -> int:
    """What a round may take: a share (float up to 1.0) of what is free on the device, bytes, or all that is free.

    Raises:
        ValueError: not a positive number.
    """
    free = free_memory_bytes(device)
    if budget is None:
        return free
    if not budget > 0 or (isinstance(budget, float) and budget > 1):
        raise ValueError(
            f"trainer.memory_budget must be a number of bytes or a share of free memory up to 1.0, got {budget}"
        )
    return int(free * budget) if isinstance(budget, float) else budget


def short_plan(split: Split, cohort: np.ndarray, local: LocalConfig, trainer: Trainer, *, steps: int) -> Plan:
    """The first `steps` steps of these clients."""
    local = dataclasses.replace(local, num_steps=steps, straggler_share=0.0)
    return make_plan(split, cohort, local, seed=0, round=1, num_slots=min(trainer.num_slots, len(cohort)))


def footprint(
    trainer: Trainer, split: Split, cohort: np.ndarray, local: LocalConfig, broadcast: Tensor, scale: float
) -> Footprint:
    """Measure a trainer's need; its clients' vectors are left as they were only if it has none.

    Args:
        trainer: will be used for a few short rounds.
        split, cohort, local: a typical round.
        broadcast: (P + Q + ...,) as in a job.
        scale: of the average.
    """
    cohort = cohort[split.sizes[cohort] > 0]  # who has nothing to train with takes no slot
    batch, _, num_steps = count_steps(split.sizes[cohort], local)
    cohort = cohort[np.argsort(-split.sizes[cohort], kind="stable")]
    peaks = {}
    trainer.expected_history = int(num_steps.max()) * batch
    try:
        plans = {
            n: short_plan(split, cohort[:n], local, trainer, steps=1)
            for n in range(1, 1 + min(2, len(cohort), trainer.num_slots))
        }
        trainer.train(plans[1], broadcast, scale)  # traces and caches are made here
        for n in plans:
            if isinstance(trainer, VectorizedTrainer):
                trainer.graphed = None  # slots that last from round to round are made anew, and counted
            with TensorMeter() as meter:
                trainer.train(plans[n], broadcast, scale)
            peaks[n] = meter.peak
    finally:
        trainer.expected_history = 0
    slot = max(0, peaks[2] - peaks[1]) if 2 in peaks else 0
    return Footprint(
        held=used_memory_bytes(broadcast.device),
        fixed=peaks[1] - slot,
        slot=slot + trainer.history_bytes(int(num_steps.max()), batch) if 2 in peaks else 0,
        num_slots=min(trainer.num_slots, len(cohort)),
        plan=plan_bytes(split.sizes[cohort], local, trainer.num_slots, whole=broadcast.is_cuda),
    )


def require(needed: Footprint, budget: int, local: LocalConfig) -> None:
    """Refuse a round that does not fit.

    Raises:
        ValueError: names the settings that would change it.
    """
    if needed.extra <= budget:
        return
    slots, batch = f"trainer.num_slots (now {needed.num_slots})", f"local.batch_size (now {local.batch_size})"
    less = needed.fewer_steps(local) or f"{slots} or {batch}, or choose a smaller model"
    raise ValueError(f"a round needs {_mib(needed.extra)} ({needed}), and {_mib(budget)} are free: lower {less}")
