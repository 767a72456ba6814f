"""The outline of a partition: who owns how much of what, in a few kilobytes however many clients there are.

Every run keeps it as partition.json, so that a report can draw the partitions of hundreds of runs without their data.
"""

from typing import Any

import numpy as np

from fedsim.data.deal.base import even_bounds
from fedsim.data.deal.sizes import apportion
from fedsim.data.federated import FederatedDataset
from fedsim.rng import stream

MAX_COLUMNS = 100  # clients, or groups of clients, that stand side by side in a picture
_MAX_CLASSES = 256  # more cannot be told apart in a picture
_MAX_CLIENTS = 10_000  # whose labels are looked at
_QUANTILES = np.linspace(0, 1, 51)


def outline(dataset: FederatedDataset) -> dict[str, Any]:
    """The training samples of every client, as plain values.

    Returns:
        `clients` and `samples`, their numbers; `sizes`, the quantiles 0, 0.02 ... 1 of the samples of a client. Where
        targets are at most 256 classes also `held`, the least, median and most classes that a client has (of those with
        samples); `columns`, what stands side by side in a picture, each with a number for each class: the samples
        of a client, in the clients' order, or with more than 100 clients the class shares of groups of like ones
        (`group_clients`); and `a_column`, the clients of a group, 1 where each stands alone. Of more than 10,000
        clients the classes of 10,000 are looked at, an even draw.
    """
    train = dataset.train
    sizes = train.sizes
    found: dict[str, Any] = {
        "clients": dataset.num_clients,
        "samples": train.num_samples,
        "sizes": [round(value, 1) for value in np.quantile(sizes, _QUANTILES).tolist()],
    }
    chosen = np.flatnonzero(sizes)
    if len(chosen) > _MAX_CLIENTS:
        chosen = np.sort(stream(0, "outline").choice(chosen, _MAX_CLIENTS, replace=False))
    counts = _class_counts(dataset, chosen)
    if counts is None:
        return found
    held = (counts > 0).sum(1)
    found["held"] = [int(held.min()), float(np.median(held)), int(held.max())]
    if len(chosen) <= MAX_COLUMNS:
        found |= {"columns": counts.tolist(), "a_column": 1}
    else:
        shares = group_clients(counts, MAX_COLUMNS)
        found |= {"columns": np.round(shares, 4).tolist(), "a_column": dataset.num_clients / MAX_COLUMNS}
    return found


def _class_counts(dataset: FederatedDataset, clients: np.ndarray) -> np.ndarray | None:
    """(n, K) int64: training samples of each class that `clients` (n,) own; None where targets are no classes."""
    targets = dataset.train.targets.numpy()
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer) or dataset.num_classes > _MAX_CLASSES:
        return None
    counts = np.zeros((len(clients), dataset.num_classes), dtype=np.int64)
    for row, client in zip(counts, clients.tolist(), strict=True):
        labels = targets[dataset.train.rows(client)]
        if not 0 <= labels.min() <= labels.max() < dataset.num_classes:
            return None
        row += np.bincount(labels, minlength=dataset.num_classes)
    return counts


def group_clients(counts: np.ndarray, num_groups: int) -> np.ndarray:
    """(num_groups, K) float64: the mean class mixes of neighbours among the clients sorted by largest class.

    Each largest class has groups in proportion to its clients, and no group has clients of two of them, unless there
    are fewer groups than classes. Where several classes are largest, they take turns. Clients without samples are left
    out.
    """
    sizes = counts.sum(1)
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    num_clients, num_classes = counts.shape
    turn = (np.arange(num_clients)[:, None] + np.arange(num_classes)) % num_classes
    largest = (counts + turn / num_classes).argmax(1)
    order = np.lexsort((-counts.max(1) / sizes, largest))
    clients_of = np.bincount(largest)
    clients_of = clients_of[clients_of > 0]
    if len(clients_of) <= num_groups:
        groups_of, _ = apportion(clients_of.astype(np.float64), num_groups, 1)
    else:
        clients_of, groups_of = np.array([num_clients]), np.array([num_groups])
    first = np.cumsum(clients_of) - clients_of
    bounds = np.concatenate([f + even_bounds(n, g)[:-1] for f, n, g in zip(first, clients_of, groups_of, strict=True)])
    mixes = counts[order] / sizes[order, None]
    return np.add.reduceat(mixes, bounds) / np.diff(bounds, append=num_clients)[:, None]
