"""BatchNorm on a minibatch with one value a channel, such as a client's last sample behind a Flatten.

One value has no variance, and PyTorch refuses it (Ioffe and Szegedy 2015 do not define it). Among thousands of clients
there is always one whose last minibatch is a single sample. Such a minibatch is normalised by the running statistics,
as in evaluation, and leaves them as they are: its sample still trains the layers. A layer without running statistics
takes the formula at its word: the value is its own mean, and what comes out is the bias.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def accept_single_values(module: nn.Module) -> nn.Module:
    """Let every BatchNorm in `module` follow this rule, and return the module; all else is as in PyTorch."""
    norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, norm.forward)
    return module


def _forward(norm: Any, usual: Any, x: Tensor) -> Tensor:
    """x (B, C) or (B, C, ...)."""
    by_itself = norm.training or norm.running_mean is None
    if not by_itself or x.dim() < 2 or x.numel() != x.shape[1]:
        return usual(x)
    if norm.running_mean is None:
        x = x - x  # the mean is the value, and moves with it
        mean, variance = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    else:  # copies: a second call of the layer may move the statistics before the gradient is taken
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps)
