"""The data's own clients, as they are or in groups: LEAF's writers, users and roles."""

from dataclasses import dataclass

import numpy as np

from fedsim.data.deal.base import even_bounds
from fedsim.data.federated import FederatedDataset
from fedsim.data.partition.build import check_positive_ints, options, with_holdout
from fedsim.data.partition.holdout import NONE, Holdout
from fedsim.data.partition.record import Partition, regroup
from fedsim.rng import stream


@dataclass(frozen=True, kw_only=True)
class Natural:
    """The data's own clients: all, or a random `num_clients` of them, in the data's order.

    Their own test and validation samples stay with them; a central test set stays as it is.
    """

    num_clients: int | None = None
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        if self.num_clients is not None:
            check_positive_ints(self, "num_clients")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the data has no clients of its own, or too few."""
        _check_natural(dataset, self.num_clients or 1)
        if self.num_clients is None:
            kept = np.arange(dataset.num_clients)
        else:
            kept = np.sort(stream(seed, "partition").choice(dataset.num_clients, self.num_clients, replace=False))
        drawn = None if self.num_clients is None and not self.holdout else seed
        return _natural("natural", self, dataset, drawn, kept, np.arange(len(kept) + 1))

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        """Raises ValueError where the data has no clients of its own, or too few."""
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class GroupedNatural:
    """Clients that are groups of the data's own clients, whose numbers differ by at most one (Flower's grouped ids).

    Their own test and validation samples stay with them; a central test set stays as it is.

    Attributes:
        num_clients: groups.
        shuffle: groups are drawn at random; else neighbours in the data's order stay together.
    """

    num_clients: int = 10
    shuffle: bool = True
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the data has no clients of its own, or too few."""
        _check_natural(dataset, self.num_clients)
        bounds = even_bounds(dataset.num_clients, self.num_clients)
        members = np.arange(dataset.num_clients)
        if self.shuffle:
            drawn = stream(seed, "partition").permutation(dataset.num_clients)
            group = np.repeat(np.arange(self.num_clients), np.diff(bounds))
            members = drawn[np.lexsort((drawn, group))]  # the data's order within a group
        drawn_seed = seed if self.shuffle or self.holdout else None
        return _natural("grouped_natural", self, dataset, drawn_seed, members, bounds)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        """Raises ValueError where the data has no clients of its own, or too few."""
        return self.partition(dataset, seed).apply(dataset)


def _natural(
    name: str, recipe: Natural | GroupedNatural, dataset: FederatedDataset, seed: int | None,
    members: np.ndarray, member_offsets: np.ndarray,
) -> Partition:  # fmt: skip
    train = regroup(dataset.train, members, member_offsets)
    assert train.offsets is not None
    assert train.order is not None
    partition = Partition(
        offsets=train.offsets,
        order=train.order,
        num_samples=len(dataset.train.inputs),
        recipe={"name": name, **options(recipe)},
        seed=seed,
        dataset=(dataset.name, dataset.fingerprint()),
        members=members,
        member_offsets=member_offsets,
    )
    return partition if seed is None else with_holdout(partition, dataset, recipe.holdout, seed)


def _check_natural(dataset: FederatedDataset, num_clients: int) -> None:
    if not dataset.train.owned:
        raise ValueError(f"data={dataset.name} has no natural clients; choose partition=iid, dirichlet or shards")
    if num_clients > dataset.num_clients:
        raise ValueError(
            f"partition.num_clients must be at most {dataset.num_clients}, the natural clients of "
            f"data={dataset.name}, got {num_clients}"
        )
