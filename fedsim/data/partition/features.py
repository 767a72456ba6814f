"""Feature skew on top of another partition: the samples of each client are transformed, each client's in its own way.

- `FeatureNoise`: noise-based feature imbalance of Li, Diao, Chen, He: Federated learning on non-IID data silos, ICDE
  2022 (NIID-Bench), section 4.2: client i of C, from 1, adds noise of i / C times the greatest variance. (NIID-Bench's
  program takes (i - 1) / (C - 1) times the greatest standard deviation instead.)
- `Rotation`: rotated MNIST of Ghosh, Chung, Yin, Ramchandran: An efficient framework for clustered federated learning
  (IFCA), NeurIPS 2020.

Both change what is stored, once: bytes stay bytes (`fedsim.data.partition.skew`). The noise of a sample is a function
of the seed and of its row. What a client holds out for validation or test is transformed like its training samples; a
test set that nobody owns stays as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

from fedsim.data.federated import FederatedDataset
from fedsim.data.partition.record import Partition


class Recipe(Protocol):
    """What makes a partition."""

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition: ...


@dataclass(frozen=True, kw_only=True)
class FeatureNoise:
    """Client c of C, from 0, adds Gaussian noise of variance (c + 1) / C times `variance`.

    Attributes:
        base: who owns what; iid in the paper.
        num_clients: of the base; None: as the base says.
        variance: of the last client's noise, where bytes count as numbers from 0 to 1; 0.1 in the paper.
    """

    base: Recipe
    num_clients: int | None = None
    variance: float = 0.1

    def __post_init__(self) -> None:
        _check_base(self.base)
        if not (_finite(self.variance) and self.variance > 0):
            raise ValueError(f"partition.variance must be a positive number, got {self.variance!r}")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError as the base does, and where it has no number of clients to set."""
        skew = {"name": "feature_noise", "variance": float(self.variance)}
        return _skewed(self.base, self.num_clients, dataset, seed, skew)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        """Raises ValueError as the base does, and where the inputs are no numbers that noise can be added to."""
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Client c sees its pictures turned anticlockwise by `angles[c mod number of angles]`.

    Attributes:
        base: who owns what; iid in the paper.
        num_clients: of the base; None: as the base says.
        angles: degrees; multiples of 90 only move the pixels of square pictures.
    """

    base: Recipe
    num_clients: int | None = None
    angles: Sequence[float] = (0, 90, 180, 270)

    def __post_init__(self) -> None:
        _check_base(self.base)
        if not self.angles or not all(_finite(angle) for angle in self.angles):
            raise ValueError(f"partition.angles must be a list of degrees, got {self.angles!r}")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError as the base does, and where it has no number of clients to set."""
        skew = {"name": "rotation", "angles": [float(angle) for angle in self.angles]}
        return _skewed(self.base, self.num_clients, dataset, seed, skew)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        """Raises ValueError as the base does, and where the inputs are no pictures."""
        return self.partition(dataset, seed).apply(dataset)


def _skewed(
    base: Recipe, num_clients: int | None, dataset: FederatedDataset, seed: int, skew: dict[str, Any]
) -> Partition:
    if num_clients is not None:
        if not (is_dataclass(base) and any(field.name == "num_clients" for field in fields(base))):
            raise ValueError(
                f"partition.num_clients={num_clients} cannot be set, for partition.base={base!r} has the clients that "
                "it has: partition.num_clients=null"
            )
        base = replace(base, num_clients=num_clients)
    made = base.partition(dataset, seed)
    # A replayed base keeps the seed that its skews were drawn with.
    kept = seed if made.seed is None else made.seed
    return replace(made, recipe={**skew, "base": made.recipe}, seed=kept, skews=(*made.skews, skew))


def _check_base(base: object) -> None:
    if not callable(getattr(base, "partition", None)):
        raise ValueError(f"partition.base must be a partition of fedsim.data.partition, got {base!r}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
