"""A module made ready for K clients side by side: what depends on the whole minibatch learns about masks.

K minibatches share one shape, so that the last batch of a pass is filled up with rows that do not count. A loss can
leave them out; BatchNorm's statistics have to as well.
"""

import copy

import torch
from torch import Tensor, nn


class MaskedBatchNorm(nn.Module):
    """BatchNorm in training mode over the rows of a minibatch that count (Ioffe and Szegedy 2015, Algorithm 1).

    Names of parameters and buffers are BatchNorm's. `mask`, (B,) of 0 and 1, is set before each call.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    mask: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        assert norm.momentum is not None, "FlatModel refuses a cumulative average"
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        if not norm.track_running_stats:
            self.running_mean = self.running_var = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) or (B, C, ...), normalised over the counting rows and all places."""
        across = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        counts = self.mask.view([-1] + [1] * (x.dim() - 1))
        num = (self.mask.sum() * (x[0, 0].numel())).clamp(min=1.0)
        mean = (x * counts).sum(across) / num
        centred = x - mean.view(shape)
        variance = (centred.square() * counts).sum(across) / num
        if self.running_mean is not None and self.running_var is not None:
            # the running variance is the unbiased one; an empty minibatch must leave both as they are
            momentum = self.momentum * (self.mask.sum() > 0)
            unbiased = variance * (num / (num - 1).clamp(min=1.0))
            self.running_mean = self.running_mean + momentum * (mean.detach() - self.running_mean)
            self.running_var = self.running_var + momentum * (unbiased.detach() - self.running_var)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is None:
            return scaled
        return scaled * self.weight.view(shape) + self.bias.view(shape)


def batched_twin(module: nn.Module) -> nn.Module:
    """A copy of `module` in training mode whose BatchNorms heed a mask; parameters keep their names."""
    twin = copy.deepcopy(module).train()
    if isinstance(twin, nn.modules.batchnorm._BatchNorm):
        return MaskedBatchNorm(twin)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, MaskedBatchNorm(child))
    return twin


def set_mask(twin: nn.Module, mask: Tensor) -> None:
    """Give every MaskedBatchNorm the (B,) mask of the coming minibatch."""
    for module in twin.modules():
        if isinstance(module, MaskedBatchNorm):
            module.mask = mask
