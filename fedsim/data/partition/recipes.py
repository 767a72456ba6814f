"""Recipes that deal the pooled training samples to clients anew: the faces of the functions in `fedsim.data.deal`.

`sizes` is None for sizes that differ by at most one, a law of sizes (`LogNormal`, `DirichletSizes`, `Power`,
`Exponential`), or a list with a number for each client. `holdout` sets validation and test samples aside in each
client.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.data import deal
from fedsim.data.deal import SizeLaw
from fedsim.data.federated import FederatedDataset
from fedsim.data.partition.build import check_alpha, check_positive_ints, dealt
from fedsim.data.partition.holdout import NONE, Holdout
from fedsim.data.partition.record import Partition
from fedsim.data.partition.scores import mean_input


@dataclass(frozen=True, kw_only=True)
class Iid:
    """Every client a random sample (`fedsim.data.deal.iid`): of equal sizes, or with a quantity skew."""

    num_clients: int = 100
    sizes: Sequence[int] | SizeLaw | None = None
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients")
        _check_sizes(self)

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where there are too few samples, or sizes that do not fit."""
        return dealt(
            "iid",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.iid(pool.targets, self.num_clients, rng, sizes=self.sizes),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Every class in Dirichlet proportions (`fedsim.data.deal.dirichlet`, NIID-Bench's rule)."""

    num_clients: int = 100
    alpha: float = 0.5
    min_samples: int = 10
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients", "min_samples")
        check_alpha(self.alpha)

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the targets are no class labels or there are too few samples."""
        chosen = {"alpha": self.alpha, "min_samples": self.min_samples}
        return dealt(
            "dirichlet",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.dirichlet(pool.targets, self.num_clients, rng, **chosen),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class DirichletSized:
    """Every client a Dirichlet class mix at its own size (`fedsim.data.deal.dirichlet_sized`); balanced by default."""

    num_clients: int = 100
    alpha: float = 0.5
    sizes: Sequence[int] | SizeLaw | None = None
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients")
        check_alpha(self.alpha)
        _check_sizes(self)

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the targets are no class labels, there are too few, or the sizes do not fit."""
        return dealt(
            "dirichlet_sized",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.dirichlet_sized(
                pool.targets, self.num_clients, rng, alpha=self.alpha, sizes=self.sizes
            ),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Every client a few shards of the samples sorted by label (`fedsim.data.deal.shards`)."""

    num_clients: int = 100
    shards_per_client: int = 2
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients", "shards_per_client")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the targets are no class labels or there are more shards than samples."""
        each = self.shards_per_client
        return dealt(
            "shards",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.shards(pool.targets, self.num_clients, rng, shards_per_client=each),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class LabelSkew:
    """Every client a few classes by NIID-Bench's "#C = k" (`fedsim.data.deal.label_skew`)."""

    num_clients: int = 100
    classes_per_client: int = 2
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients", "classes_per_client")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where a class would have no holder, or fewer samples than holders."""
        each = self.classes_per_client
        return dealt(
            "label_skew",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.label_skew(pool.targets, self.num_clients, rng, classes_per_client=each),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Pathological:
    """Every client a few classes, every class as many holders (`fedsim.data.deal.pathological`)."""

    num_clients: int = 100
    classes_per_client: int = 2
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients", "classes_per_client")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where a class would have no holder, or fewer samples than holders."""
        each = self.classes_per_client
        return dealt(
            "pathological",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.pathological(pool.targets, self.num_clients, rng, classes_per_client=each),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Continuous:
    """Clients along a score of the samples, blended with noise (`fedsim.data.deal.continuous`).

    Attributes:
        score: score(dataset, rows of its training split) -> (M,) finite numbers; see `fedsim.data.partition.scores`.
        strictness: from 0 (iid) to 1 (sorted).
    """

    num_clients: int = 100
    strictness: float = 0.5
    score: Callable[[FederatedDataset, np.ndarray], np.ndarray] = mean_input
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients")
        number = isinstance(self.strictness, int | float) and not isinstance(self.strictness, bool)
        if not (number and math.isfinite(self.strictness) and 0 <= self.strictness <= 1):
            raise ValueError(f"partition.strictness must be in [0, 1], got {self.strictness!r}")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where a score is not finite or there are more clients than samples."""
        return dealt(
            "continuous",
            self,
            dataset,
            seed,
            lambda pool, rng: deal.continuous(
                self.score(dataset, pool.numbers()), self.num_clients, rng, strictness=self.strictness
            ),
        )

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Fcube:
    """Every client a pair of opposite octants of a cube (`fedsim.data.deal.octants`)."""

    num_clients: int = 4
    holdout: Holdout = NONE

    def __post_init__(self) -> None:
        check_positive_ints(self, "num_clients")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the inputs are not three numbers, or an octant has too few of them."""
        return dealt("fcube", self, dataset, seed, lambda pool, rng: deal.octants(pool.inputs(), self.num_clients, rng))

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


def _check_sizes(recipe: Iid | DirichletSized) -> None:
    """Makes a list of sizes a tuple of integers, or raises ValueError."""
    if isinstance(recipe.sizes, Sequence):
        for size in recipe.sizes:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"partition.sizes must be positive integers, got {size!r}")
        object.__setattr__(recipe, "sizes", tuple(recipe.sizes))
