"""Each class in Dirichlet shares among the clients: the "hetero" partition, whose sizes follow from the shares.

Li, Diao, Chen, He: Federated learning on non-IID data silos, ICDE 2022 (NIID-Bench), distribution-based label
imbalance, after Yurochkin et al., Bayesian nonparametric federated learning of neural networks, ICML 2019.
"""

import numpy as np

from fedsim.data.deal.base import Deal, at_most, check_labels, gather, ranges, shuffled_by_class, stable_argsort

# Random variables that `dirichlet` may draw in all its tries: about a second, unless one try takes more.
_DRAWS = 3_000_000
_MAX_TRIES = 1000
# Samples that a cut may lack to the next whole number, to be that number.
_ALMOST = 1e-6


def dirichlet(
    targets: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_samples: int = 10,
) -> Deal:
    """Split each class in Dirichlet proportions among the clients that are not yet full.

    For each class in turn, p ~ Dir(alpha) over the clients; p = 0 for those that already hold N / C samples
    or more; p renormalised; the shuffled class cut at floor(cumsum(p) n), where a number that lacks a millionth to the
    next whole one is that. This is tried until the smallest client holds `min_samples`. A Dirichlet vector restricted
    to some of its entries and renormalised is again Dirichlet, so p is drawn over the clients with room alone: the same
    law, but it never divides by zero.

    Where the tries are used up (at most 1000, fewer for very many clients), the outcome is repaired, which
    departs from the law: the try that lacks fewest samples is taken, and the largest clients, levelled down
    from above, give random samples of theirs to the clients below `min_samples`, just enough to fill them.
    `facts` tells: `num_tries`, and `num_moved`, the samples that the repair moved (0: none was needed).

    Args:
        targets: (N,) integer class labels.
        num_clients: at most N / min_samples.
        rng: source of all randomness.
        alpha: concentration; small values give each class to few clients, large ones approach `iid`.
        min_samples: the least samples of a client.

    Raises:
        ValueError: the targets are no class labels, or there are too few samples for `min_samples` each.
    """
    check_labels("dirichlet", targets)
    num_samples = len(targets)
    if num_clients * min_samples > num_samples:
        changes = at_most("min_samples", num_samples // num_clients)
        changes += at_most("num_clients", num_samples // min_samples)
        raise ValueError(
            f"partition=dirichlet cannot give {num_clients} clients at least {min_samples} samples each: "
            f"that takes {num_clients * min_samples} samples, and the data has {num_samples}; "
            f"{' or '.join(changes) or 'the data has too few samples'}"
        )
    class_sizes = np.bincount(targets)
    max_tries = int(np.clip(_DRAWS // (num_clients * len(class_sizes)), 1, _MAX_TRIES))
    # Tries draw counts alone; the samples are shuffled once, for the try that is kept.
    best = np.zeros((0, 0), dtype=np.int64)
    fewest, num_tries = num_samples + 1, 0
    while fewest > 0 and num_tries < max_tries:
        counts = _dirichlet_counts(class_sizes, num_clients, rng, alpha)
        missing = int(np.maximum(min_samples - counts.sum(0), 0).sum())
        if missing < fewest:
            best, fewest = counts, missing
        num_tries += 1

    by_class = shuffled_by_class(targets, rng)
    owners = np.empty(num_samples, dtype=np.min_scalar_type(num_clients))
    owners[by_class] = np.repeat(np.tile(np.arange(num_clients), len(class_sizes)), best.reshape(-1))
    if fewest > 0:
        _repair(owners, best.sum(0), min_samples, rng)
    return gather(owners, num_clients, rng, {"num_tries": num_tries, "num_moved": fewest})


def _dirichlet_counts(class_sizes: np.ndarray, num_clients: int, rng: np.random.Generator, alpha: float) -> np.ndarray:
    """(K, C) int64: one try, samples of each class for each client."""
    # Beyond these bounds the law is at its limits (one client, even shares), but the draw would overflow.
    concentration = float(np.clip(alpha, 1e-100, 1e100))
    capacity = class_sizes.sum() / num_clients
    counts = np.zeros((len(class_sizes), num_clients), dtype=np.int64)
    sizes = np.zeros(num_clients, dtype=np.int64)
    for label in np.flatnonzero(class_sizes):
        # Samples are left to deal, so the mean size is below the capacity, and some client has room.
        room = np.flatnonzero(sizes < capacity)
        shares = np.cumsum(rng.dirichlet(np.full(len(room), concentration)))
        # Division by the last sum, rather than by 1, makes the last cut exact: rounding loses no sample. With a small
        # alpha many sums are 1 but for the last bit, on which the processor decides: what is a whole number but for
        # that is one.
        cuts = (shares / shares[-1] * class_sizes[label] + _ALMOST).astype(np.int64)
        counts[label, room] = np.diff(cuts, prepend=0)
        sizes[room] += counts[label, room]
    return counts


def _repair(owners: np.ndarray, sizes: np.ndarray, min_samples: int, rng: np.random.Generator) -> None:
    """Change `owners` (N,) in place, so that every client owns `min_samples`: see `dirichlet`."""
    wanted = np.maximum(min_samples - sizes, 0)
    total = int(wanted.sum())
    # The highest level to which the largest clients can be cut so that what is cut off suffices.
    low, high = 0, int(sizes.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.maximum(sizes - middle, 0).sum() >= total else (low, middle)
    given = np.maximum(sizes - low, 0)
    given[np.flatnonzero(given)[: int(given.sum()) - total]] -= 1
    assert given.sum() == total
    assert low >= min_samples
    shuffled = rng.permutation(len(owners))
    by_owner = shuffled[stable_argsort(owners[shuffled])]
    moved = by_owner[ranges(np.cumsum(sizes) - sizes, given)]
    owners[rng.permutation(moved)] = np.repeat(np.arange(len(sizes)), wanted)
