"""What is minimised and what is measured: per-sample functions of (outputs, targets).

A sequence has a target at each of its places, and `IGNORED` where there is nothing to predict (behind the end of a
short text): such a place is no part of the loss, of its gradient, of the accuracy or of the number of places.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The target of a place in a sequence that does not count, by PyTorch's convention."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, in nats: (B, classes) and (B,), or (B, classes, length) and (B, length), to (B,).

    The loss of a sequence is the mean over its places that count, 0 where none does.

    Raises:
        ValueError: there are not as many outputs as targets.
    """
    if outputs.dim() != targets.dim() + 1:
        places = "one target" if targets.dim() == 1 else f"targets of shape {tuple(targets.shape[1:])}"
        raise ValueError(
            f"the data has {places} a sample, but the model's output for a minibatch has shape {tuple(outputs.shape)}: "
            "choose another model (reddit_lstm predicts at every place, most others once a sample)"
        )
    if outputs.dtype == torch.bfloat16:  # of a forward pass under autocast: eight bits are too few for a loss
        outputs = outputs.float()
    # What F.cross_entropy computes, without its ignored index, which takes most of its operations.
    log_probabilities = F.log_softmax(outputs, 1)
    if targets.dim() == 1:
        return log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1).neg()
    losses = log_probabilities.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1).neg()
    return _mean_over_places(losses, targets)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B,) float: whether the largest output is the target; of a sequence the share of its places that count."""
    hits = (outputs.argmax(1) == targets).to(outputs.dtype)
    return hits if hits.dim() == 1 else _mean_over_places(hits, targets)


def num_places(targets: Tensor) -> Tensor:
    """(B,) int64: places of each sample that count; 1 for a sample with one target."""
    return torch.ones_like(targets) if targets.dim() == 1 else (targets != IGNORED).flatten(1).sum(1)


def _mean_over_places(values: Tensor, targets: Tensor) -> Tensor:
    counts = targets != IGNORED
    return values.masked_fill(~counts, 0.0).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)
