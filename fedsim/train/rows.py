"""Gradients of n models that lie in the rows of a matrix: by plain autograd for one, in one batched call for many."""

from typing import Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.objective import PerSample
from fedsim.train.gradient import SlotGradient, Slots
from fedsim.train.precision import autocast
from fedsim.vector import FlatModel


class RowGradient(Protocol):
    """Losses and gradients of n models."""

    def __call__(self, rows: Tensor, x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, P + Q) models and the first counts (n,) of their samples x (n, B, ...), y (n, B, ...).

        Returns:
            (n,) sums of the losses, (n, P) gradients of the mean losses, (n, Q) the running statistics after it.
        """
        ...


class SerialGradient:
    """`RowGradient` of one model, by plain autograd.

    Args:
        model: whose layout the row has.
        objective: outputs and targets -> (B,) losses.
        precision: of the forward pass.
    """

    def __init__(self, model: FlatModel, objective: PerSample, precision: str = "float32") -> None:
        self.model, self.objective, self.precision = model, objective, precision

    def __call__(self, rows: Tensor, x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, size = self.model, self.model.num_parameters
        # `counts` is the host's here: nothing waits for a device
        x, y = x[0, : int(counts[0])], y[0, : int(counts[0])]
        with torch.enable_grad():
            if rows.data_ptr() == model.vector.data_ptr():
                with autocast(self.precision, x.device):
                    outputs = model.module(x)
                parameters = model.parameters
                buffers = model.vector[size:]
            else:
                views = model.layout.views(rows[0].detach())
                parameters = [views[e.name].requires_grad_() for e in model.layout.parameters]
                buffers = rows[0, size:].clone()  # the call moves them, and a gradient alone must not
                moving = {e.name: buffers[e.start - size : e.stop - size].view(e.shape) for e in model.layout.buffers}
                with autocast(self.precision, x.device):
                    outputs = functional_call(model.module, {**views, **moving}, (x,))
            losses = self.objective(outputs, y)
            gradients = torch.autograd.grad(losses.mean(), parameters, allow_unused=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        return losses.detach().sum().view(1), flat.view(1, -1), buffers.view(1, -1)


class BatchedGradient:
    """`RowGradient` of many models in one call.

    Args:
        model: for the layout.
        gradient: of n slots, nothing factored.
    """

    def __init__(self, model: FlatModel, gradient: SlotGradient) -> None:
        self.layout, self.gradient = model.layout, gradient

    def __call__(self, rows: Tensor, x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, layout = len(rows), self.layout
        named = {e.name: rows[:, e.start : e.stop].view(n, *e.shape) for e in (*layout.parameters, *layout.buffers)}
        parameters = {e.name: named[e.name] for e in layout.parameters}
        buffers = {e.name: named[e.name] for e in layout.buffers}
        ones = rows.new_ones((n, 1))
        slots = Slots(
            parameters=parameters, buffers=buffers, kept=ones[:, 0], coefficients=ones[:, 1:], inputs={}, gradients={}
        )
        found = self.gradient(slots, {}, x, y, counts)
        flat = torch.cat([found.parameters[e.name].reshape(n, -1) for e in layout.parameters], dim=1)
        moved = [found.buffers.get(e.name, named[e.name]).reshape(n, -1) for e in layout.buffers]
        after = torch.cat(moved, dim=1) if moved else rows[:, layout.num_parameters :]
        return found.loss_sums, flat, after
