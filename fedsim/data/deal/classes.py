"""Clients that see few classes: shards, #C classes a client, and the pathological partition.

- `shards`: McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017,
  section 3.
- `label_skew`: quantity-based label imbalance, "#C = k", of Li, Diao, Chen, He: Federated learning on non-IID data
  silos, ICDE 2022 (NIID-Bench), section 4.1.
- `pathological`: the "c classes a client" of personalised federated learning (for example Collins et al., FedRep,
  ICML 2021, section 5), in which all classes have the same number of holders.
"""

import math

import numpy as np

from fedsim.data.deal.base import (
    Deal,
    at_most,
    check_labels,
    even_bounds,
    gather,
    offsets_of,
    ranges,
    shuffled_by_class,
    stable_argsort,
)


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
    check_labels("shards", targets)
    num_samples, num_shards = len(targets), num_clients * shards_per_client
    if num_shards > num_samples:
        changes = at_most("num_clients", num_samples // shards_per_client)
        changes += at_most("shards_per_client", num_samples // num_clients)
        raise ValueError(
            f"partition=shards cannot cut {num_samples} samples into {num_shards} shards ({num_clients} "
            f"clients x {shards_per_client} shards each); "
            f"{' or '.join(changes) or 'the data has too few samples'}"
        )
    by_label = stable_argsort(targets)
    bounds = even_bounds(num_samples, num_shards)
    dealt = rng.permutation(num_shards)
    sizes = np.diff(bounds)[dealt]
    offsets = offsets_of(sizes.reshape(num_clients, shards_per_client).sum(1))
    return Deal(offsets, by_label[ranges(bounds[:-1][dealt], sizes)], {})


def label_skew(targets: np.ndarray, num_clients: int, rng: np.random.Generator, *, classes_per_client: int = 2) -> Deal:
    """Client i holds class i mod K and others at random; each class is split evenly among its holders.

    With at least K clients this is NIID-Bench's rule. With fewer, the rule may leave classes without a holder and drop
    them; here the classes from C to K - 1 are first dealt to clients at random, and the rest follows the rule.

    Args:
        targets: (N,) integer class labels; K of them occur, and are numbered in ascending order.
        num_clients: C.
        rng: source of all randomness.
        classes_per_client: at most K; every client gets samples of exactly so many classes.

    Raises:
        ValueError: the targets are no class labels, more classes are asked for than there are, a class would have no
            holder, or fewer samples than holders.
    """
    present = _holdable("label_skew", targets, num_clients, classes_per_client)
    num_classes = len(present)
    held = np.full((num_clients, classes_per_client), -1, dtype=np.int64)
    held[:, 0] = np.arange(num_clients) % num_classes
    unheld = np.arange(num_clients, num_classes)
    if len(unheld):
        places = rng.permutation(num_clients * (classes_per_client - 1))[: len(unheld)]
        held[places // (classes_per_client - 1), 1 + places % (classes_per_client - 1)] = unheld
        held = np.sort(held, axis=1)[:, ::-1]  # the places that are still free, -1, last
    for place in range(1, classes_per_client):
        free = np.flatnonzero(held[:, place] < 0)
        # The r-th of the classes that the client does not hold: r, raised over each smaller or equal class it holds.
        chosen = rng.integers(0, num_classes - place, len(free))
        for smaller in np.sort(held[free, :place], axis=1).T:
            chosen += chosen >= smaller
        held[free, place] = chosen
    return _split_evenly("label_skew", targets, present[held], rng)


def pathological(
    targets: np.ndarray, num_clients: int, rng: np.random.Generator, *, classes_per_client: int = 2
) -> Deal:
    """Every client holds c classes, every class has as many holders as any other, or one more.

    Clients are taken in groups of K / gcd(K, c). A group draws an order of the K classes, and its clients take c at a
    time from it, round and round; then clients change places at random.

    Args:
        targets: (N,) integer class labels; K of them occur.
        num_clients: C.
        rng: source of all randomness.
        classes_per_client: c, at most K; every client gets samples of exactly so many classes.

    Raises:
        ValueError: the targets are no class labels, more classes are asked for than there are, a class would have no
            holder, or fewer samples than holders.
    """
    present = _holdable("pathological", targets, num_clients, classes_per_client)
    num_classes = len(present)
    group = num_classes // math.gcd(num_classes, classes_per_client)
    orders = np.argsort(rng.random((-(-num_clients // group), num_classes)), axis=1, kind="stable")
    places = np.arange(group * classes_per_client).reshape(group, classes_per_client) % num_classes
    held = orders[:, places].reshape(-1, classes_per_client)[:num_clients]
    return _split_evenly("pathological", targets, present[held[rng.permutation(num_clients)]], rng)


def _holdable(recipe: str, targets: np.ndarray, num_clients: int, classes_per_client: int) -> np.ndarray:
    """(K,) int64: the classes that occur, if so many clients can hold them."""
    check_labels(recipe, targets)
    present = np.flatnonzero(np.bincount(targets))
    num_classes = len(present)
    if classes_per_client > num_classes:
        raise ValueError(
            f"partition={recipe} cannot give a client {classes_per_client} classes: the data has {num_classes}; "
            f"set partition.classes_per_client to at most {num_classes}"
        )
    if num_clients * classes_per_client < num_classes:
        raise ValueError(
            f"partition={recipe} leaves a class without a holder: {num_clients} clients x {classes_per_client} "
            f"classes each do not cover the {num_classes} classes; set partition.num_clients to at least "
            f"{-(-num_classes // classes_per_client)} or partition.classes_per_client to at least "
            f"{-(-num_classes // num_clients)}"
        )
    return present


def _split_evenly(recipe: str, targets: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> Deal:
    """Each class in parts that differ by at most one sample, to its holders.

    Args:
        recipe: for messages.
        targets: (N,) labels.
        held: (C, c) distinct labels of each client; every label that occurs has a holder.
        rng: source of all randomness.
    """
    num_clients, each = held.shape
    # Who gets the larger part is a matter of chance.
    pairs = rng.permutation(held.size)
    pairs = pairs[stable_argsort(held.reshape(-1)[pairs])]
    class_sizes = np.bincount(targets)
    holders = np.bincount(held.reshape(-1), minlength=len(class_sizes))
    short = np.flatnonzero(class_sizes < holders)
    if len(short):
        label = int(short[0])
        raise ValueError(
            f"partition={recipe} cannot split the {class_sizes[label]} samples of class {label} among "
            f"{holders[label]} holders: set partition.num_clients or partition.classes_per_client lower"
        )
    rank = np.arange(held.size) - np.repeat(np.cumsum(holders) - holders, holders)
    size, parts = (np.repeat(numbers, holders) for numbers in (class_sizes, holders))
    lengths = (rank + 1) * size // parts - rank * size // parts
    owners = np.empty(len(targets), dtype=np.min_scalar_type(num_clients))
    owners[shuffled_by_class(targets, rng)] = np.repeat(pairs // each, lengths)
    return gather(owners, num_clients, rng, {})
