"""Dealing samples to clients: pure functions of (targets, number of clients, generator).

- `iid` and `shards`: McMahan et al., Communication-efficient learning of deep networks from decentralized
  data, AISTATS 2017, section 3.
- `dirichlet`: Li, Diao, Chen, He: Federated learning on non-IID data silos, ICDE 2022 (NIID-Bench), its
  distribution-based label imbalance, after Yurochkin et al., Bayesian nonparametric federated learning, 2019.

`fedsim.data.partition` holds the result, and the recipes that the configuration names.
"""

from typing import NamedTuple

import numpy as np

# Random variables that `dirichlet` may draw in all its tries: about a second, unless one try takes more.
_DRAWS = 3_000_000
_MAX_TRIES = 1000


class Deal(NamedTuple):
    """Who gets which sample.

    Attributes:
        offsets: (C + 1,) int64; client c owns `order[offsets[c]:offsets[c + 1]]`.
        order: (N,) int64, every sample's number once.
        facts: what the construction has to report, by name.
    """

    offsets: np.ndarray
    order: np.ndarray
    facts: dict[str, int]


def iid(targets: np.ndarray, num_clients: int, rng: np.random.Generator) -> Deal:
    """Shuffle the samples and cut them into sizes that differ by at most one.

    Args:
        targets: (N, ...), of which only the length counts.
        num_clients: at most N.
        rng: source of all randomness.

    Raises:
        ValueError: there are more clients than samples.
    """
    num_samples = len(targets)
    if num_clients > num_samples:
        raise ValueError(
            f"partition=iid cannot give each of {num_clients} clients one of {num_samples} samples: "
            f"set partition.num_clients to at most {num_samples}"
        )
    return Deal(_even_bounds(num_samples, num_clients), rng.permutation(num_samples), {})


def shards(targets: np.ndarray, num_clients: int, rng: np.random.Generator, *, shards_per_client: int = 2) -> Deal:
    """Sort by label, cut into equal shards, deal every client the same number of shards at random.

    The sort is stable. Where N is no multiple of the number of shards, their sizes differ by one; no sample
    is dropped.

    Args:
        targets: (N,) integer class labels.
        num_clients: the shards' receivers.
        rng: source of all randomness.
        shards_per_client: 2 in the paper.

    Raises:
        ValueError: the targets are no class labels, or there are more shards than samples.
    """
    _check_labels("shards", targets)
    num_samples, num_shards = len(targets), num_clients * shards_per_client
    if num_shards > num_samples:
        changes = _at_most("num_clients", num_samples // shards_per_client)
        changes += _at_most("shards_per_client", num_samples // num_clients)
        raise ValueError(
            f"partition=shards cannot cut {num_samples} samples into {num_shards} shards ({num_clients} "
            f"clients x {shards_per_client} shards each); "
            f"{' or '.join(changes) or 'the data has too few samples'}"
        )
    by_label = _stable_argsort(targets)
    bounds = _even_bounds(num_samples, num_shards)
    dealt = rng.permutation(num_shards)
    sizes = np.diff(bounds)[dealt]
    offsets = np.concatenate([[0], np.cumsum(sizes.reshape(num_clients, shards_per_client).sum(1))])
    return Deal(offsets, by_label[ranges(bounds[:-1][dealt], sizes)], {})


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
    or more; p renormalised; the shuffled class cut at floor(cumsum(p) n). This is tried until the smallest
    client holds `min_samples`. A Dirichlet vector restricted to some of its entries and renormalised is again
    Dirichlet, so p is drawn over the clients with room alone: the same law, but it never divides by zero.

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
    _check_labels("dirichlet", targets)
    num_samples = len(targets)
    if num_clients * min_samples > num_samples:
        changes = _at_most("min_samples", num_samples // num_clients)
        changes += _at_most("num_clients", num_samples // min_samples)
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

    shuffled = rng.permutation(num_samples)
    by_class = shuffled[_stable_argsort(targets[shuffled])]
    owners = np.empty(num_samples, dtype=np.min_scalar_type(num_clients))
    owners[by_class] = np.repeat(np.tile(np.arange(num_clients), len(class_sizes)), best.reshape(-1))
    if fewest > 0:
        _repair(owners, best.sum(0), min_samples, rng)
    order = rng.permutation(num_samples)
    order = order[_stable_argsort(owners[order])]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_clients))])
    return Deal(offsets, order, {"num_tries": num_tries, "num_moved": fewest})


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(sum of lengths,) int64: starts[0], starts[0] + 1, ..., then the next range, and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


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
        # Division by the last sum, rather than by 1, makes the last cut exact: rounding loses no sample.
        cuts = (shares / shares[-1] * class_sizes[label]).astype(np.int64)
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
    by_owner = shuffled[_stable_argsort(owners[shuffled])]
    moved = by_owner[ranges(np.cumsum(sizes) - sizes, given)]
    owners[rng.permutation(moved)] = np.repeat(np.arange(len(sizes)), wanted)


def _even_bounds(num_samples: int, num_parts: int) -> np.ndarray:
    """(num_parts + 1,) int64: bounds of parts whose sizes differ by at most one."""
    return np.arange(num_parts + 1, dtype=np.int64) * num_samples // num_parts


def _stable_argsort(values: np.ndarray) -> np.ndarray:
    # NumPy sorts integers of 16 bits in linear time, wider ones not.
    narrow = values.astype(np.min_scalar_type(int(values.max()))) if len(values) else values
    return np.argsort(narrow, kind="stable")


def _at_most(setting: str, bound: int) -> list[str]:
    return [f"set partition.{setting} to at most {bound}"] if bound > 0 else []


def _check_labels(recipe: str, targets: np.ndarray) -> None:
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"partition={recipe} needs one integer class label a sample, but the targets have shape "
            f"{targets.shape} and type {targets.dtype}: choose partition=iid or partition=natural"
        )
    if len(targets) and targets.min() < 0:
        raise ValueError(f"partition={recipe} needs class labels from 0 on, but the targets have {targets.min()}")
