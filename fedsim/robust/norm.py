"""Rules that weigh whole updates by their length or by their distance from a centre.

Geometric median: Pillutla et al. 2022, "Robust Aggregation for Federated Learning", algorithm 2 (smoothed Weiszfeld).
Norm bounding: Sun et al. 2019, "Can You Really Backdoor Federated Learning?", section 4.
"""

from typing import Unpack

from torch import Tensor

from fedsim.robust.base import Aggregator, Storage
from fedsim.robust.coordinate import median_of
from fedsim.robust.store import UpdateStore


def geometric_median(
    num_iterations: int = 3, smoothing: float = 1e-6, equal_weights: bool = False, **storage: Unpack[Storage]
) -> Aggregator:
    """The point whose weighted sum of Euclidean distances from the updates is smallest, approximately.

    From the mean, v <- sum of b_k x_k / sum of b_k with b_k = a_k / max(nu, ||v - x_k||), a few times.

    Args:
        num_iterations: R of the paper, which finds 3 to be enough.
        smoothing: nu, positive.
        equal_weights: a_k is the same for all clients, else the number of their samples.
        storage: memory_mib, spill_dir (`Aggregator`).
    """
    if num_iterations < 1:
        raise ValueError(f"aggregator.num_iterations must be at least 1, got {num_iterations}")
    if not smoothing > 0:
        raise ValueError(f"aggregator.smoothing must be positive, got {smoothing}")

    def rule(updates: UpdateStore) -> Tensor:
        alpha = updates.weights.to(updates.device)
        centre = updates.weighted_sum(alpha / alpha.sum())
        for _ in range(num_iterations):
            beta = alpha / updates.squared_norms(centre).sqrt().clamp_(min=smoothing)
            centre = updates.weighted_sum(beta / beta.sum())
        return centre

    return Aggregator(name="geometric_median", rule=rule, equal_weights=equal_weights, **storage)


def norm_bounding(max_norm: float | None = None, equal_weights: bool = False, **storage: Unpack[Storage]) -> Aggregator:
    """The mean of updates, of which the longer ones are scaled down to a bound.

    Args:
        max_norm: the bound; None: the median of the round's norms. With a bound of its own no update need be kept:
            transforms=[clip] streams.
        equal_weights: every client counts the same, else by the number of its samples.
        storage: memory_mib, spill_dir (`Aggregator`).
    """
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"aggregator.max_norm must be positive or null, got {max_norm}")

    def rule(updates: UpdateStore) -> Tensor:
        norms = updates.squared_norms().sqrt()
        bound = median_of(norms[:, None]) if max_norm is None else norms.new_tensor(max_norm)
        factor = (bound / norms.clamp(min=1e-300)).clamp_(max=1.0)
        weights = updates.weights.to(updates.device)
        return updates.weighted_sum(factor * weights / weights.sum())

    return Aggregator(name="norm_bounding", rule=rule, equal_weights=equal_weights, **storage)
