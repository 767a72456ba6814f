"""A module made ready for K clients side by side.

Four kinds of layer need a twin. BatchNorm looks at the whole minibatch, so it must not see the rows that only fill it
up. A large linear layer need not have K weights (`FactoredLinear`). The first convolution has few channels, which is
slow in groups (`PatchConv2d`). And an LSTM's kernels cannot be batched (`fedsim.train.recurrent`).
"""

import copy
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedsim.train.recurrent import UnrolledLSTM

# Elements of a patch, channels times kernel, up to which `PatchConv2d` is the faster.
_MAX_PATCH = 75


class MaskedBatchNorm(nn.Module):
    """BatchNorm in training mode over the rows that count (Ioffe and Szegedy 2015, Algorithm 1).

    A minibatch with one value a channel follows the rule of `fedsim.batch_norm`.

    Parameters and buffers have BatchNorm's names. `mask`, (B,) of 0 and 1, is set before each step, and `updated`
    emptied; it holds the running statistics after the step, since a functional call must not write to its arguments.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        assert norm.momentum is not None, "FlatModel refuses a cumulative average"
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.mask = torch.ones(1)
        self.updated: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) or (B, C, ...), normalised over the counting rows and all places."""
        across = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        counts = self.mask.view([-1] + [1] * (x.dim() - 1))
        num = (self.mask.sum() * (x.numel() // (x.shape[0] * x.shape[1]))).clamp(min=1.0)
        mean = (x * counts).sum(across) / num
        several = num > 1
        if self.running_mean is not None:
            mean = torch.where(several, mean, self.running_mean)
        centred = x - mean.view(shape)
        variance = (centred.square() * counts).sum(across) / num
        if self.running_mean is not None and self.running_var is not None:
            # the running variance is the unbiased one; less than two values leave both as they are
            unbiased = variance * (num / (num - 1).clamp(min=1.0))
            before = self.updated or {"running_mean": self.running_mean, "running_var": self.running_var}
            moved = {"running_mean": mean.detach(), "running_var": unbiased.detach()}
            self.updated = {
                name: torch.where(several, old.lerp(moved[name], self.momentum), old) for name, old in before.items()
            }
            variance = torch.where(several, variance, self.running_var)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is None:
            return scaled
        return scaled * self.weight.view(shape) + self.bias.view(shape)


class _SharedProduct(torch.autograd.Function):
    """x (B, in) times one weight (out, in) that all slots share, as one product for all of them."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.weight = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SharedProduct.apply(gradient, ctx.weight.T), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, weight: Tensor) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert in_dims[1] is None
        x = x.movedim(in_dims[0] or 0, 0)
        return (x.reshape(-1, x.shape[-1]) @ weight.T).view(*x.shape[:-1], len(weight)), 0


class FactoredLinear(nn.Module):
    """A linear layer of one slot whose weight is never written down.

    Local SGD moves a weight by multiples of its gradients, and the gradient of a linear layer on a minibatch is
    D^T X, for the layer's inputs X (B, in) and the loss's gradients D (B, out) at its outputs. So during a round every
    client's weight is

        W = a W_0 + sum_r c_r d_r^T x_r,

    with the global weight W_0 shared by all slots, one (x_r, d_r) for each sample seen so far, and a few numbers a
    and c that the optimizer moves in the place of W (`fedsim.train.slots`). The layer's output is

        x W^T = a x W_0^T + ((x X^T) * c) D,

    one large product for all slots together and two small ones for each. For a layer of 2048 x 3136 and clients of
    a hundred samples this is 20 times less memory a slot, and the large products run at the speed of a large batch.

    Set before each call: `base` W_0 (out, in), `kept` a (0-d), `coefficients` c (R,), `inputs` X (R, in), `gradients`
    D (R, out), and `probe`, zeros (B, out), whose gradient is D of this minibatch. `seen` is X of this minibatch.
    """

    base: Tensor
    kept: Tensor
    coefficients: Tensor
    inputs: Tensor
    gradients: Tensor
    probe: Tensor
    seen: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        self.seen = x.detach()
        outputs = _SharedProduct.apply(x, self.base) * self.kept
        outputs = outputs + ((x @ self.inputs.T) * self.coefficients) @ self.gradients
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs + self.probe


class PatchConv2d(nn.Module):
    """A convolution as one product of its weights with the patches of its input.

    The convolutions of all slots are one convolution in groups, whose kernels on a CPU are slow if a group has few
    channels: LEAF's first layer takes five times as long as this. The patches repeat each input kernel_size times, so
    this is for layers of few channels whose input needs no gradient.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride, conv.padding

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether `module` is a convolution that this can stand for, small enough for it to be faster."""
        return (
            type(module) is nn.Conv2d
            and module.weight.device.type == "cpu"
            and module.weight[0].numel() <= _MAX_PATCH
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and isinstance(module.padding, tuple)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        assert isinstance(self.padding, tuple)
        (high, wide), weight = self.padding, self.weight.flatten(1)
        for dim, size, stride in zip((2, 3), self.weight.shape[2:], self.stride, strict=True):
            x = (pad(x, (wide, wide, high, high)) if dim == 2 else x).unfold(dim, size, stride)
        batch, _, height, width, *_ = x.shape
        patches = x.permute(0, 1, 4, 5, 2, 3).reshape(batch, -1, height * width)
        if self.bias is not None:
            patches = pad(patches, (0, 0, 0, 1), value=1.0)
            weight = torch.cat([weight, self.bias[:, None]], dim=1)
        return (weight @ patches).view(batch, -1, height, width)


def batched_twin(module: nn.Module, factored: set[str], first: Set[str] = frozenset()) -> nn.Module:
    """`module` in training mode, with twins for BatchNorm, LSTMs, the linear layers named in `factored`, and the
    convolutions named in `first`.

    The modules are copies and the parameters are not: a functional call brings its own, and a model is not kept twice.
    """
    # a buffer that is a view would take a copy of the whole vector along
    kept = {id(p): p for p in module.parameters()} | {id(b): b.clone() for b in module.buffers()}
    twin = copy.deepcopy(module, kept).train()
    for name, child in list(twin.named_modules()):
        replacement: nn.Module
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            replacement = MaskedBatchNorm(child)
        elif name in factored:
            assert isinstance(child, nn.Linear)
            replacement = FactoredLinear(child)
        elif name in first:
            assert isinstance(child, nn.Conv2d)
            replacement = PatchConv2d(child)
        elif UnrolledLSTM.replaces(child):
            assert isinstance(child, nn.LSTM)
            replacement = UnrolledLSTM(child)
        else:
            continue
        if not name:
            return replacement
        parent, _, last = name.rpartition(".")
        setattr(twin.get_submodule(parent), last, replacement)
    return twin


def norms(twin: nn.Module) -> Iterator[tuple[str, MaskedBatchNorm]]:
    """The twins of BatchNorm, with their names."""
    return ((name, m) for name, m in twin.named_modules() if isinstance(m, MaskedBatchNorm))


def factorable(module: nn.Module, sample: Tensor, min_size: int) -> dict[str, tuple[int, int]]:
    """Linear layers that `FactoredLinear` can stand for: name -> (out, in).

    Those with at least `min_size` weights, a weight that is trained and is nobody else's, called exactly once with
    a plain (B, in) input when the module sees `sample` (B, ...).
    """
    weights = [id(p) for m in module.modules() for p in m._parameters.values() if p is not None]
    found: dict[str, nn.Linear] = {}
    for name, child in module.named_modules():
        if type(child) is not nn.Linear or child.weight.numel() < min_size or not child.weight.requires_grad:
            continue
        if weights.count(id(child.weight)) > 1 or child._forward_hooks or child._forward_pre_hooks:
            continue
        found[name] = child
    calls = _inputs(module, found, sample)
    return {n: (m.out_features, m.in_features) for n, m in found.items() if [x.dim() for x in calls[n]] == [2]}


def first_convolutions(module: nn.Module, sample: Tensor) -> set[str]:
    """Convolutions that `PatchConv2d` can stand for and that see nothing but the samples (B, ...) themselves."""
    found = {n: m for n, m in module.named_modules() if PatchConv2d.replaces(m)}
    calls = _inputs(module, found, sample)
    return {n for n in found if calls[n] and all(x.data_ptr() == sample.data_ptr() for x in calls[n])}


def _inputs(module: nn.Module, layers: Mapping[str, nn.Module], sample: Tensor) -> dict[str, list[Tensor]]:
    """What each of these layers is called with when the module sees `sample`."""
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_hook(lambda _m, x, _y, seen=calls[name]: seen.append(x[0]))
        for name, layer in layers.items()
    ]
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(sample)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return calls
