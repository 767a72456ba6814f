"""The local optimizers on K rows, each client by itself: the arithmetic of torch.optim's SGD, Adam, AdamW, Adagrad.

A client's momenta and counts start at zero in every round. SGD itself is `fedsim.train.step.sgd_`.
"""

import torch
from torch import Tensor

from fedsim.config import LocalConfig
from fedsim.train.seats import fill_
from fedsim.train.step import clip_, sgd_

_MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2, "adagrad": 1}


class RowOptimizer:
    """One optimizer for K vectors of length P.

    Args:
        local: the settings.
        like: (K, P), for the shape of what is kept.
    """

    def __init__(self, local: LocalConfig, like: Tensor) -> None:
        self.local = local
        kept = 0 if local.optimizer == "sgd" and not local.momentum else _MOMENTS[local.optimizer]
        self.moments = [torch.zeros(like.shape, dtype=like.dtype, device=like.device) for _ in range(kept)]
        self.taken = like.new_zeros((len(like), 1))

    def begin(self, slots: Tensor | slice) -> None:
        """New clients start in these slots."""
        for moment in self.moments:
            fill_(moment, slots, 0.0)
        fill_(self.taken, slots, 0.0)

    def step(self, parameters: Tensor, gradient: Tensor, learning_rate: float, only: Tensor | None = None) -> None:
        """Move the first n rows, (n, P), along their gradients, which may be overwritten.

        `only` is bool, broadcastable to (n, P): what it leaves out stays as it is, and so do its moments.
        """
        n, local = len(parameters), self.local
        moments, taken = [m[:n] for m in self.moments], self.taken[:n]
        before = None if only is None else [t.clone() for t in (parameters, *moments)]
        taken += 1.0 if only is None else only.expand_as(parameters).any(1, keepdim=True)
        if local.max_gradient_norm is not None:
            counted = gradient if only is None else torch.where(only, gradient, 0.0)
            clip_([gradient], torch.linalg.vector_norm(counted, dim=1), local.max_gradient_norm)
        if local.optimizer == "sgd":
            sgd_([parameters], [gradient], moments or None, local, learning_rate)
        elif local.optimizer == "adagrad":
            gradient = gradient.add_(parameters, alpha=local.weight_decay) if local.weight_decay else gradient
            moments[0].addcmul_(gradient, gradient)
            parameters.addcdiv_(gradient, moments[0].sqrt().add_(local.epsilon), value=-learning_rate)
        else:
            self._adam(parameters, gradient, moments, taken.clamp(min=1.0), learning_rate)
        if only is not None and before is not None:
            for tensor, old in zip((parameters, *moments), before, strict=True):
                tensor.copy_(torch.where(only, tensor, old))

    def _adam(
        self, parameters: Tensor, gradient: Tensor, moments: list[Tensor], taken: Tensor, learning_rate: float
    ) -> None:
        local = self.local
        if local.weight_decay and local.optimizer == "adamw":
            parameters.mul_(1 - learning_rate * local.weight_decay)
        elif local.weight_decay:
            gradient.add_(parameters, alpha=local.weight_decay)
        first, second = moments
        first.lerp_(gradient, 1 - local.beta1)
        second.mul_(local.beta2).addcmul_(gradient, gradient, value=1 - local.beta2)
        # each client has taken its own number of steps
        first_correction, second_correction = 1 - local.beta1**taken, 1 - local.beta2**taken
        scale = second.sqrt().div_(second_correction.sqrt()).add_(local.epsilon).mul_(first_correction)
        parameters.addcdiv_(first, scale, value=-learning_rate)
