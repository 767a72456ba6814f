"""Who sits where: clients of a plan in their slots, for the host and for the device.

A GPU stops for every number that the host sends it between two steps. So what it has to know of who comes and who goes
is sent once a round.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.train.plan import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class Seated:
    """Some clients of a plan.

    Attributes:
        who: (n,) int64 their indices in the plan.
        slots: (n,) int64 where each one sits.
        weights: (n,) float64 of each in the average.
        who_there, slots_there, weights_there: the same, on the device.
    """

    who: np.ndarray
    slots: np.ndarray
    weights: np.ndarray
    who_there: Tensor
    slots_there: Tensor
    weights_there: Tensor

    @property
    def place(self) -> Tensor | slice:
        """The slots as an index on the device: a slice where they lie side by side, which is twice as fast."""
        first, number = int(self.slots[0]), len(self.slots)
        return slice(first, first + number) if (np.diff(self.slots) == 1).all() else self.slots_there


def fill_(rows: Tensor, place: Tensor | slice, value: float) -> None:
    """rows[place] = value, for which a GPU would otherwise wait where the place is a tensor."""
    if isinstance(place, slice):
        rows[place] = value
    else:
        rows.index_fill_(0, place, value)


class Seats:
    """The clients of a plan in one order, of which `some` takes those from one place to another.

    Args:
        plan: the round.
        order: (m,) int64, each index into the plan once.
        weights: (m,) float64 of the plan's clients in the average.
        device: where the slots are.
    """

    def __init__(self, plan: Plan, order: np.ndarray, weights: np.ndarray, device: torch.device) -> None:
        self.who, self.slots, self.weights = order, plan.slot[order], weights[order]
        self.who_there, self.slots_there = torch.from_numpy(np.stack([self.who, self.slots])).to(device)
        self.weights_there = torch.from_numpy(self.weights).to(device)

    def some(self, begin: int, end: int) -> Seated:
        """Those from place `begin` to `end` - 1 of the order."""
        part = slice(begin, end)
        return Seated(
            who=self.who[part],
            slots=self.slots[part],
            weights=self.weights[part],
            who_there=self.who_there[part],
            slots_there=self.slots_there[part],
            weights_there=self.weights_there[part],
        )
