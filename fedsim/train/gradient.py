"""Gradients of K slots in one call: autograd through `vmap(functional_call)`, traced once.

The slots share no leaf, so the gradient of the sum of their losses holds each slot's own gradient. That is the
result of `vmap(grad(...))`, without `torch.func.grad`, which imports the compiler: 150 MiB and two seconds.
"""

import itertools
import logging
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from fedsim.memory import give_back_memory
from fedsim.objective import PerSample, cross_entropy
from fedsim.rng import forked_generators
from fedsim.train.batched import FactoredLinear, batched_twin, norms
from fedsim.train.precision import autocast, products
from fedsim.train.trace import trace

log = logging.getLogger("fedsim")

Named = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Slots:
    """The arguments of one step of n slots, each with the slot as first dimension.

    Attributes:
        parameters: by name, (n, *shape); without the weights of factored layers.
        buffers: floating-point buffers by name, (n, *shape).
        kept: (n,) a, how much of the global weight is left in the factored weights.
        coefficients: (n, R) c, of the R rows of history.
        inputs, gradients: history of each factored layer, (n, R, in) and (n, R, out).
    """

    parameters: Named
    buffers: Named
    kept: Tensor
    coefficients: Tensor
    inputs: Named
    gradients: Named


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """The result of one step of n slots.

    Attributes:
        loss_sums: (n,) sum of the losses of the minibatch's samples.
        parameters: gradient of the mean loss by name, (n, *shape).
        buffers: those that the step has changed, by name, (n, *shape).
        seen, probes: of each factored layer, its inputs (n, B, in) and the mean loss's gradients at its outputs
            (n, B, out).
    """

    loss_sums: Tensor
    parameters: Named
    buffers: Named
    seen: Named
    probes: Named


class SlotGradient:
    """Computes the gradients of n slots.

    Args:
        module: the model; its parameter objects are shared, not copied.
        factored: names of the linear layers whose weights are factored.
        first: names of the convolutions that are products with patches (`PatchConv2d`).
        stochastic: whether the model draws random numbers.
        traced: record the operations once and replay them (`fedsim.train.trace`), which leaves out functorch's
            own overhead.
        precision: of the forward pass (`fedsim.train.precision`).
        objective: outputs and targets -> (B,) losses.

    Raises:
        ValueError: on the first call, for a model that cannot be batched.
    """

    def __init__(
        self,
        module: nn.Module,
        factored: set[str],
        first: Set[str] = frozenset(),
        *,
        stochastic: bool,
        traced: bool = True,
        precision: str = "float32",
        objective: PerSample | None = None,
    ) -> None:
        self.objective = objective or cross_entropy()
        self.twin = batched_twin(module, factored, first)
        self.layers = {n: m for n, m in self.twin.named_modules() if isinstance(m, FactoredLinear)}
        self.fixed: Named = {n: b for n, b in self.twin.named_buffers() if not b.is_floating_point()}
        self.in_dims = (0, 0, 0, None, 0, 0, 0, 0, 0, 0, 0)
        self.places = torch.empty(0)
        self.randomness = "different" if stochastic else "error"
        self.traced, self.precision = traced, precision
        self.function: Callable[..., Any] | None = None

    def _slot(
        self,
        parameters: Named,
        probes: Named,
        buffers: Named,
        bases: Named,
        kept: Tensor,
        coefficients: Tensor,
        inputs: Named,
        gradients: Named,
        x: Tensor,
        y: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Named, Named]]:
        """(B,) losses of one slot's samples; and the sum of those that count, and what the step leaves behind."""
        for name, layer in self.layers.items():
            layer.base, layer.probe = bases[name], probes[name]
            layer.kept, layer.coefficients = kept, coefficients
            layer.inputs, layer.gradients = inputs[name], gradients[name]
        for _, norm in norms(self.twin):
            norm.mask, norm.updated = mask, {}
        fixed = {name: buffer.clone() for name, buffer in self.fixed.items()}
        # the attention kernels that are fused have no rule for batching
        with sdpa_kernel(SDPBackend.MATH), autocast(self.precision, x.device):
            outputs = functional_call(self.twin, {**parameters, **buffers, **fixed}, (x,))
        losses = self.objective(outputs, y)
        updated = {
            f"{name}.{key}" if name else key: value
            for name, norm in norms(self.twin)
            for key, value in norm.updated.items()
        }
        seen = {name: layer.seen for name, layer in self.layers.items()}
        return losses, ((losses.detach() * mask).sum(), updated, seen)

    def _by_autograd(self, parameters: Named, probes: Named, *others: Any) -> tuple[tuple[Named, Named], Any]:
        """Gradients of all slots' mean losses by parameter and probe, and what else `_slot` gives.

        Arguments are those of `_slot` for n slots, and what each sample's loss counts in the mean, (n, B).
        """
        with torch.enable_grad():
            leaves, structure = pytree.tree_flatten((parameters, probes))
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            forward = vmap(self._slot, in_dims=self.in_dims, randomness=self.randomness)
            losses, rest = forward(*pytree.tree_unflatten(leaves, structure), *others[:-1])
            total = (losses * others[-1]).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        return pytree.tree_unflatten(list(gradients), structure), pytree.tree_map(torch.Tensor.detach, rest)

    def _by_functorch(self, *arguments: Any) -> tuple[tuple[Named, Named], Any]:
        """The same. It takes composite operations apart (an LSTM), which plain autograd leaves to vmap whole."""

        def mean(*values: Any) -> tuple[Tensor, Any]:
            losses, rest = self._slot(*values[:-1])
            return (losses * values[-1]).sum(), rest

        step = grad(mean, argnums=(0, 1), has_aux=True)
        return vmap(step, in_dims=(*self.in_dims, 0), randomness=self.randomness)(*arguments)

    def __call__(self, slots: Slots, bases: Named, x: Tensor, y: Tensor, counts: Tensor) -> Gradients:
        """Gradients of the minibatches x (n, B, ...), y (n, B, ...), of which the first counts (n,) rows count.

        `bases` are the global weights of the factored layers, (out, in), shared by all slots.
        """
        n, batch = x.shape[:2]
        kept = slots.kept  # of the model's dtype, which that of x need not be: tokens are integers
        if len(self.places) != batch or self.places.device != x.device:
            self.places = torch.arange(batch, device=x.device)
        mask = (self.places < counts[:, None]).to(kept.dtype)
        probes = {name: kept.new_zeros((n, batch, len(base))) for name, base in bases.items()}
        arguments = (
            slots.parameters,
            probes,
            slots.buffers,
            bases,
            slots.kept,
            slots.coefficients,
            slots.inputs,
            slots.gradients,
            x,
            y,
            *_weighed(mask),
        )
        if self.function is None:
            self.function = self._prepare(arguments)
            give_back_memory()  # of the trials
        with torch.no_grad():
            (parameters, at_probes), (loss_sums, buffers, seen) = self.function(*arguments)
        return Gradients(loss_sums=loss_sums, parameters=parameters, buffers=buffers, seen=seen, probes=at_probes)

    def _prepare(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The function that every step calls: traced, if a trial at other sizes proves that the trace is right."""
        with forked_generators() as reseed:
            # a layer may do something else with minibatches of the run's own size
            trials = [self._example(arguments, *sizes) for sizes in ((4, 3, 4), (1, 1, arguments[-1].shape[1]))]

            def results(function: Callable[..., Any]) -> list[list[Tensor]]:
                found = []
                for trial in trials:
                    reseed(0)  # a random layer then draws the same numbers again
                    found.append(pytree.tree_leaves(function(*trial)))
                return found

            reasons = []
            for function in (self._by_autograd, self._by_functorch):
                try:
                    expected = results(function)
                    break
                except RuntimeError as error:
                    reasons.append(str(error).split("\n")[0])
            else:
                raise ValueError(
                    f"trainer=vectorized cannot train {type(self.twin).__name__} side by side ({reasons[-1]}); "
                    "use trainer=serial"
                )
            if self.randomness == "error":
                with products("float32", arguments[-1].device):  # which samples meet does not depend on rounding
                    self._refuse_meeting(function, arguments)
            if not self.traced:
                return function
            try:
                traced = trace(function, partial(self._example, arguments))
                found = results(traced)
            except Exception as error:
                log.warning("the batched step could not be traced and runs slower (%s)", str(error).split("\n")[0])
                return function
        # the same operations in the same order: anything but rounding means that a size was misread
        if not all(_near(f, e, 1e-3) for f, e in zip(found, expected, strict=True)):
            log.warning("the traced step differs from the step itself, which runs instead, slower")
            return function
        return traced

    def _refuse_meeting(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """A minibatch that is filled up must train as it does alone.

        Raises:
            ValueError: samples meet outside BatchNorm, or the model asks how many there are.
        """
        parameters, probes, *others, x, y, _, _ = self._example(arguments, 2, 3, 3)
        for count in (1, 2):
            found = []
            for batch in (count, 3):
                mask = (torch.arange(batch, device=x.device) < count).to(others[2].dtype).expand(2, batch)
                cut = {name: probe[:, :batch] for name, probe in probes.items()}
                gradients, (losses, *_) = function(
                    parameters, cut, *others, x[:, :batch], y[:, :batch], *_weighed(mask)
                )
                found.append([losses, *gradients[0].values()])
            alone, filled = found
            if not _near(filled, alone, 0.05 if self.precision == "bf16" else 1e-3):
                raise ValueError(
                    f"trainer=vectorized fills minibatches up to one size, but {type(self.twin).__name__} lets samples "
                    "meet outside BatchNorm, or asks how many there are: use trainer=serial"
                )

    @staticmethod
    def _example(arguments: tuple[Any, ...], n: int, history: int, batch: int) -> tuple[Any, ...]:
        """Arguments of other sizes in the same layout: the same slots and samples over and over, and some history."""
        parameters, probes, buffers, bases, kept, *past, x, y, mask, _ = arguments
        generator = torch.Generator(mask.device).manual_seed(0)

        def slots(v: Tensor) -> Tensor:
            """Slots lie apart in memory, as in a larger matrix: what is a view here is one there."""
            values = repeat(v, n).reshape(n, -1)
            apart = values.new_empty((n, values.shape[1] + 1))[:, :-1]
            return apart.copy_(values).view(n, *v.shape[1:])

        def repeat(v: Tensor, *sizes: int) -> Tensor:
            for dim, size in enumerate(sizes):
                v = v.index_select(dim, torch.arange(size, device=v.device) % v.shape[dim])
            return v

        def draw(v: Tensor) -> Tensor:
            shape = (n, history + 1, *v.shape[2:])
            drawn = torch.randn(shape, generator=generator, device=v.device, dtype=v.dtype) / history
            return drawn[:, :history]

        parameters, buffers, kept = pytree.tree_map(slots, (parameters, buffers, kept))
        probes, x, y = pytree.tree_map(lambda v: repeat(v, n, batch), (probes, x, y))
        counts = batch - torch.arange(n, device=mask.device) % 3
        mask = (torch.arange(batch, device=mask.device) < counts[:, None]).to(mask.dtype)
        return (parameters, probes, buffers, bases, kept, *pytree.tree_map(draw, past), x, y, *_weighed(mask))


def _weighed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask (n, B) of the samples that count, and each one's weight in the mean of its minibatch."""
    return mask, mask / mask.sum(1, keepdim=True).clamp(min=1.0)


def _near(found: list[Tensor], expected: list[Tensor], share: float) -> bool:
    """Whether each differs by so small a share of its largest element, but for the rounding of what should be zero."""
    largest = [e.abs().nan_to_num(posinf=1.0).max().item() if e.numel() else 0.0 for e in expected]
    noise = 1e-5 * max(largest, default=0.0)
    return all(
        torch.allclose(f, e, rtol=share, atol=share * most + noise, equal_nan=True)
        for tensors in zip(found, expected, largest, strict=True)
        for f, e, most in zip(tensors[0], tensors[1], itertools.repeat(tensors[2]))  # a slot at a time, to save memory
    )
