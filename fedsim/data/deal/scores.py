"""Deals by what the samples are, not by their labels.

- `continuous`: the ContinuousPartitioner of Flower Datasets: sort by a score that is blended with noise.
- `octants`: FCUBE of Li, Diao, Chen, He: Federated learning on non-IID data silos, ICDE 2022 (NIID-Bench), section 4.2:
  a cube in four pairs of opposite octants, one for each client, so that features differ and labels balance.
"""

import numpy as np

from fedsim.data.deal.base import Deal, even_bounds, gather, stable_argsort
from fedsim.data.deal.sizes import equal_sizes


def continuous(scores: np.ndarray, num_clients: int, rng: np.random.Generator, *, strictness: float = 0.5) -> Deal:
    """Sort by strictness * z + (1 - strictness) * noise, and cut into sizes that differ by at most one.

    Args:
        scores: (N,) finite numbers; z is the score minus its mean over its standard deviation.
        num_clients: at most N; client 0 gets the lowest scores.
        rng: source of all randomness; the noise is N(0, 1).
        strictness: from 0 (iid) to 1 (sorted by the score alone; equal scores in random order).

    Raises:
        ValueError: a score is not finite, or there are more clients than samples.
    """
    scores = np.asarray(scores, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(f"partition=continuous needs finite scores, but sample {bad[0]} has {scores[bad[0]]}")
    equal_sizes(len(scores), num_clients, recipe="continuous")
    deviation = scores.std()
    standard = (scores - scores.mean()) / (deviation if deviation > 0 else 1.0)
    blended = strictness * standard + (1 - strictness) * rng.standard_normal(len(scores))
    shuffled = rng.permutation(len(scores))
    return Deal(even_bounds(len(scores), num_clients), shuffled[np.argsort(blended[shuffled], kind="stable")], {})


def octants(points: np.ndarray, num_clients: int, rng: np.random.Generator) -> Deal:
    """Client c gets the points of the pair of opposite octants c mod 4.

    The pairs are, by the signs of (x1, x2, x3): 0 {+++, ---}, 1 {++-, --+}, 2 {+-+, -+-}, 3 {+--, -++}; zero counts as
    negative. Clients with the same pair share it at random and evenly.

    Args:
        points: (N, 3) finite numbers around the origin.
        num_clients: 4 in NIID-Bench; any multiple of 4.
        rng: source of all randomness.

    Raises:
        ValueError: the points are not finite triples, the number of clients is no multiple of 4, or a pair of octants
            has fewer points than clients.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(
            f"partition=fcube needs three numbers a sample, but one sample has shape {points.shape[1:]}: "
            "use it with data=fcube, or choose another partition"
        )
    if not np.isfinite(points).all():
        raise ValueError("partition=fcube needs finite inputs, and some are not")
    if num_clients % 4:
        raise ValueError(f"partition.num_clients must be a multiple of 4 for partition=fcube, got {num_clients}")
    positive = points > 0
    flipped = positive[:, 1:] ^ ~positive[:, :1]  # mirrored, so that x1 is positive
    pair = np.where(flipped[:, 0], 0, 2) + np.where(flipped[:, 1], 0, 1)
    sharing = num_clients // 4
    counts = np.bincount(pair, minlength=4)
    if not counts.min():
        raise ValueError(
            f"partition=fcube finds no point in pair of octants {counts.argmin()}: are the points around the origin?"
        )
    if counts.min() < sharing:
        raise ValueError(
            f"partition=fcube cannot share the {counts.min()} points of pair of octants {counts.argmin()} among "
            f"{sharing} clients: set partition.num_clients to at most {4 * int(counts.min())}"
        )
    shuffled = rng.permutation(len(points))
    by_pair = shuffled[stable_argsort(pair[shuffled])]
    owners = np.empty(len(points), dtype=np.min_scalar_type(num_clients))
    for which, members in enumerate(np.split(by_pair, np.cumsum(counts)[:-1])):
        parts = np.diff(even_bounds(len(members), sharing))
        owners[members] = np.repeat(np.arange(sharing) * 4 + which, parts)
    return gather(owners, num_clients, rng, {})
