"""What is minimised and what is measured: per-sample functions of (outputs, targets)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, in nats: (B, classes) and (B,), or (B, classes, length) and (B, length), to (B,).

    The loss of a sequence is the mean over its places.
    """
    # What F.cross_entropy computes, without its ignored index, which takes most of its operations.
    losses = F.log_softmax(outputs, 1).gather(1, targets.unsqueeze(1)).squeeze(1).neg()
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B,) float: whether the largest output is the target; for sequences the share of places where it is."""
    hits = (outputs.argmax(1) == targets).to(torch.float32)
    return hits if hits.dim() == 1 else hits.flatten(1).mean(1)
