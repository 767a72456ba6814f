"""The state of K slots: what each client's model has become so far."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import Factors, OnlineAverage
from fedsim.config import LocalConfig
from fedsim.train.gradient import Gradients, SlotGradient, Slots
from fedsim.train.seats import Seated, fill_
from fedsim.train.step import Tensors, clip_, sgd_, unshared
from fedsim.vector import FlatModel

# Rows of history multiplied at once when slots are folded.
_PRODUCT_ROWS = 64


@dataclass(frozen=True)
class _Column:
    """An entry of the vector that every slot has whole: its place in a slot's row and in the vector."""

    name: str
    shape: torch.Size
    start: int
    stop: int
    vector_start: int


class SlotState:
    """K rows of whole parameters and buffers, and the factors of the linear layers that are not whole.

    Args:
        model: for its layout.
        factored: names of the factored linear layers, with (out, in).
        gradient: of n slots.
        num_slots: K.
        num_steps: steps of the longest client; its history must fit.
        batch: B.
        local: the rule of a step.
        broadcast: (P + Q,) where every client starts.
    """

    def __init__(
        self,
        model: FlatModel,
        factored: dict[str, tuple[int, int]],
        gradient: SlotGradient,
        *,
        num_slots: int,
        num_steps: int,
        batch: int,
        local: LocalConfig,
        broadcast: Tensor,
    ) -> None:
        self.gradient, self.local, self.batch = gradient, local, batch
        weights = {f"{name}.weight" if name else "weight" for name in factored}
        views = model.layout.views(broadcast)
        self.bases = {name: views[f"{name}.weight" if name else "weight"] for name in factored}
        self.places = {
            name: next(e.start for e in model.layout.parameters if e.name == (f"{name}.weight" if name else "weight"))
            for name in factored
        }
        self.columns: list[_Column] = []
        width = 0
        for entry in (*model.layout.parameters, *model.layout.buffers):
            if entry.name not in weights:
                size = entry.stop - entry.start
                self.columns.append(_Column(entry.name, entry.shape, width, width + size, entry.start))
                width += size
        trained = {e.name for e in model.layout.parameters}
        self.num_trained = sum(c.stop - c.start for c in self.columns if c.name in trained)
        self.parameter_columns = [c for c in self.columns if c.name in trained]
        self.buffer_columns = [c for c in self.columns if c.name not in trained]
        self.widths = [c.stop - c.start for c in self.columns]

        make = broadcast.new_empty
        self.start = torch.cat([broadcast[c.vector_start : c.vector_start + c.stop - c.start] for c in self.columns])
        self.rows = make((num_slots, width))
        self.momentum = make((num_slots, self.num_trained)).zero_() if local.momentum else None
        # the factored weights' coordinates: 1 for the global weight, and one number for each step's gradient
        self.history = num_steps if factored else 0
        self.coordinates = make((num_slots, 1 + self.history)).zero_()
        self.kept = self.coordinates[:, 0]
        self.coordinate_momentum = torch.zeros_like(self.coordinates) if local.momentum and factored else None
        self.inputs = {n: make((num_slots, num_steps, batch, shape[1])) for n, shape in factored.items()}
        self.gradients = {n: make((num_slots, num_steps, batch, shape[0])) for n, shape in factored.items()}
        self.taken = np.zeros(num_slots, np.int64)  # steps that the slot's client has taken
        self.taken_there = torch.zeros(num_slots, dtype=torch.int64, device=broadcast.device)  # kept with a history
        self.touched = 0  # steps of history that have been written by any slot

    def restart(self, broadcast: Tensor, local: LocalConfig) -> None:
        """Another round in the same memory: nothing may be factored, and the optimizer must be of the same kind."""
        assert not self.bases
        assert bool(local.momentum) == bool(self.local.momentum)
        self.local = local
        for c in self.columns:
            self.start[c.start : c.stop] = broadcast[c.vector_start : c.vector_start + c.stop - c.start]

    def computed(self, n: int) -> int:
        """How many slots are computed when the first n are busy."""
        return n

    def begin(self, arriving: Seated) -> None:
        """New clients start in these slots: the global model, no momentum, no history; who they are changes nothing."""
        slots = arriving.place
        self.rows[slots] = self.start
        if self.momentum is not None:
            fill_(self.momentum, slots, 0.0)
        fill_(self.coordinates, slots, 0.0)
        fill_(self.kept, slots, 1.0)
        if self.coordinate_momentum is not None:
            fill_(self.coordinate_momentum, slots, 0.0)
        self.taken[arriving.slots] = 0
        if self.history:
            fill_(self.taken_there, slots, 0)

    def _arguments(self, n: int, own: list[Tensor]) -> Slots:
        """The first n slots, whose whole columns are `own`, as `SlotGradient` takes them."""
        rows = 0
        if self.history:
            # one step of zeros stands for an empty history, so that every step has the same form
            if self.touched == 0:
                for history in (*self.inputs.values(), *self.gradients.values()):
                    history[:n, 0] = 0.0
            steps = max(1, int(self.taken[:n].max()))
            rows = steps * self.batch
        named = {c.name: v.view(n, *c.shape) for c, v in zip(self.columns, own, strict=True)}
        return Slots(
            parameters={c.name: named[c.name] for c in self.parameter_columns},
            buffers={c.name: named[c.name] for c in self.buffer_columns},
            kept=self.kept[:n],
            coefficients=self._coefficients(n, rows),
            inputs={name: h[:n].flatten(1, 2)[:, :rows] for name, h in self.inputs.items()},
            gradients={name: h[:n].flatten(1, 2)[:, :rows] for name, h in self.gradients.items()},
        )

    def _coefficients(self, n: int, rows: int) -> Tensor:
        """(n, rows): the factor of each sample of history."""
        factors = self.coordinates[:n, 1 : 1 + rows // self.batch]
        return factors.repeat_interleave(self.batch, dim=1) if rows else factors

    def advance(self, n: int, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """One step of the first n slots on minibatches x (n, B, ...), y (n, B, ...), of which counts (n,) count.

        Returns:
            (n,) sums of the losses before the step.
        """
        own = [*self.rows[:n].split(self.widths, 1)]
        found = self.gradient(self._arguments(n, own), self.bases, x, y, counts)
        self._step(n, own, found)
        return found.loss_sums

    def _step(self, n: int, own: list[Tensor], found: Gradients) -> None:
        """Move the first n slots, whose whole columns are `own`, along their gradients."""
        local, trained = self.local, len(self.parameter_columns)
        for column, values in zip(self.buffer_columns, own[trained:], strict=True):
            if column.name in found.buffers:
                values.copy_(found.buffers[column.name].reshape(n, -1))
        parameters, momenta = own[:trained], None
        gradients = [found.parameters[c.name].reshape(n, -1) for c in self.parameter_columns]
        if self.momentum is not None:
            momenta = [*self.momentum[:n].split(self.widths[:trained], 1)]
        gradients = [*unshared(gradients, local)]
        if self.history:
            # A weight moves by the same rule in its coordinates, where the gradient of this step is a unit vector.
            slots = torch.arange(n, device=self.rows.device)
            now = self.taken_there[:n]
            if (latest := int(self.taken[:n].max())) == self.touched:
                # the slots that are behind read a place before they write it; others never get here
                for history in (*self.inputs.values(), *self.gradients.values()):
                    history[:n, latest] = 0.0
                self.touched += 1
            for name in self.inputs:
                self.inputs[name][slots, now] = found.seen[name]
                self.gradients[name][slots, now] = found.probes[name]
            unit = torch.zeros_like(self.coordinates[:n])
            unit.scatter_(1, 1 + now[:, None], 1.0)
            parameters.append(self.coordinates[:n])
            gradients.append(unit)
            if momenta is not None and self.coordinate_momentum is not None:
                momenta.append(self.coordinate_momentum[:n])
        if local.max_gradient_norm is not None:
            clip_(gradients, self._norm(gradients, found), local.max_gradient_norm)
        sgd_(parameters, gradients, momenta, local)
        self.taken[:n] += 1
        if self.history:
            self.taken_there[:n] += 1

    def _norm(self, gradients: Tensors, found: Gradients) -> Tensor:
        """(n,) Euclidean norm of each slot's whole gradient."""
        whole = gradients[:-1] if self.history else gradients
        squares = torch.stack([g.square().sum(1) for g in whole]).sum(0)
        for name, d in found.probes.items():
            x = found.seen[name]
            # || D^T X ||^2 = sum of (D D^T) * (X X^T)
            squares = squares + ((d @ d.mT) * (x @ x.mT)).sum((1, 2))
        return squares.clamp(min=0.0).sqrt()

    def updates(self, leaving: Seated) -> Tensor:
        """(n, P + Q): the updates of n clients, whole; no layer may be factored."""
        assert not self.bases
        return self.rows[leaving.slots_there] - self.start

    def fold(self, leaving: Seated, average: OnlineAverage) -> Tensor:
        """Stream the updates of n clients into the average; (n,) squared norms of their whole columns."""
        index, weights = leaving.slots_there, leaving.weights_there
        squares = self.rows.new_zeros(len(index))
        for c in _runs(self.columns):
            own = slice(c.start, c.stop)
            squares += average.add_some(self.rows[:, own], index, self.start[own], weights, c.vector_start)
        average.add_weight(leaving.weights.tolist())
        if not self.bases:
            return squares
        slots = leaving.slots.tolist()
        share = weights.to(self.rows.dtype) / average.scale
        coordinates = self.coordinates[index] * share[:, None]
        kept = coordinates[:, 0].sum() - share.sum()  # (a - 1) W_0, summed over the slots
        for name, base in self.bases.items():
            factors = []
            for group in _grouped(slots, self.taken[slots] * self.batch):
                steps = [(slots[i], slice(0, self.taken[slots[i]])) for i in group]
                left = [self.gradients[name][slot, past].flatten(0, 1) for slot, past in steps]
                right = [self.inputs[name][slot, past].flatten(0, 1) for slot, past in steps]
                shares = [coordinates[i, 1 : 1 + self.taken[slots[i]]] for i in group]
                factors.append(
                    Factors(
                        left=left,
                        coefficients=torch.cat(shares).repeat_interleave(self.batch),
                        right=right[0] if len(right) == 1 else torch.cat(right),
                    )
                )
            average.add_product(factors, base if self.local.weight_decay else None, kept, self.places[name])
        return squares


def _grouped(slots: list[int], rows: np.ndarray) -> list[list[int]]:
    """Indices of slots in groups of `_PRODUCT_ROWS` or more rows of history, so that no product is thin."""
    groups: list[list[int]] = [[]]
    total = 0
    for i in range(len(slots)):
        if total >= _PRODUCT_ROWS:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += int(rows[i])
    return groups


def _runs(columns: list[_Column]) -> list[_Column]:
    """Columns that lie side by side in the vector, joined."""
    joined: list[_Column] = []
    for c in columns:
        last = joined[-1] if joined else None
        if last is not None and last.vector_start + last.stop - last.start == c.vector_start:
            joined[-1] = _Column(last.name, last.shape, last.start, c.stop, last.vector_start)
        else:
            joined.append(c)
    return joined
