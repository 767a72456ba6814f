"""Which client owns which training samples: the partition, its file and digest, and the recipes that make it.

A recipe (`Iid`, `Dirichlet`, `Shards`, `Natural`) is the configuration's face of the functions in
`fedsim.data.deal`. The same recipe, seed and data give the same partition, and the same digest, everywhere.
"""

import hashlib
import json
import math
import os
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.data.deal import Deal, dirichlet, iid, ranges, shards
from fedsim.data.federated import FederatedDataset, Split
from fedsim.files import write_atomically
from fedsim.rng import stream


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """Owners of the training samples.

    Attributes:
        offsets: (C + 1,) int64; client c owns the rows `order[offsets[c]:offsets[c + 1]]`.
        order: (M,) int64 row numbers of the training split.
        num_samples: rows of the training split, owned or not (N).
        recipe: the recipe's name under "name", and its options.
        seed: None where the partition is not random.
        facts: what the construction has to report: for dirichlet `num_tries` and `num_moved`.
    """

    offsets: np.ndarray
    order: np.ndarray
    num_samples: int
    recipe: dict[str, Any]
    seed: int | None = None
    facts: dict[str, int] = field(default_factory=dict)

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(C,) int64: samples of each client."""
        return np.diff(self.offsets)

    @property
    def num_dropped(self) -> int:
        """Rows that no client owns."""
        owned = np.zeros(self.num_samples, dtype=bool)
        owned[self.order] = True
        return self.num_samples - int(owned.sum())

    def digest(self) -> str:
        """Hexadecimal SHA-256 of offsets, order and number of samples; how they were made does not count."""
        sha = hashlib.sha256()
        for numbers in ([self.num_samples, len(self.offsets), len(self.order)], self.offsets, self.order):
            # The bytes must not depend on the machine's byte order.
            sha.update(np.ascontiguousarray(numbers, dtype="<i8").data)
        return sha.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz file (arrays, and the rest as JSON; no pickle): completely, or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rest = {key: getattr(self, key) for key in ("num_samples", "recipe", "seed", "facts")}
        metadata = np.array(json.dumps(rest))

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # given a name, savez would append .npz to it
                np.savez(file, offsets=self.offsets, order=self.order, metadata=metadata)

        write_atomically(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Partition":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or something else.
        """
        try:
            # np.load leaves a file open that it opened and could not read.
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                rest = json.loads(str(file["metadata"]))
                return cls(offsets=file["offsets"], order=file["order"], **rest)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a partition that fedsim saved: {error}") from error

    def frame(self, targets: np.ndarray, num_classes: int) -> pd.DataFrame:
        """One row a client: `client` (its number), `samples`, and `class_0` ... (samples of each class).

        Args:
            targets: (N,) integer class labels of the training split.
            num_classes: number of `class_` columns.

        Raises:
            ValueError: the labels do not fit the partition or the number of classes.
        """
        targets = np.asarray(targets)
        if targets.shape != (self.num_samples,):
            raise ValueError(f"the partition has {self.num_samples} samples, the targets are {targets.shape}")
        labels = targets[self.order]
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}: not {num_classes} classes")
        cells = np.repeat(np.arange(self.num_clients) * num_classes, self.sizes) + labels
        counts = np.bincount(cells, minlength=self.num_clients * num_classes)
        table = pd.DataFrame(counts.reshape(self.num_clients, num_classes)).add_prefix("class_")
        table.insert(0, "client", np.arange(self.num_clients))
        table.insert(1, "samples", self.sizes)
        return table

    def apply(self, dataset: FederatedDataset) -> FederatedDataset:
        """The same samples owned by clients "0", "1", ...; test samples become central.

        Raises:
            ValueError: the partition is of another number of samples.
        """
        if len(dataset.train.inputs) != self.num_samples:
            raise ValueError(
                f"the partition is of {self.num_samples} training samples, but data={dataset.name} has "
                f"{len(dataset.train.inputs)}: make the partition anew, or load the data it was made for"
            )
        notes = dataset.notes
        if self.facts.get("num_moved"):
            notes += (
                f"partition={self.recipe['name']}: none of {self.facts['num_tries']} draws gave every client "
                f"{self.recipe['min_samples']} samples, so {self.facts['num_moved']} samples were moved from "
                "the largest clients to the smallest (a larger partition.alpha, fewer clients or a smaller "
                "partition.min_samples avoid this)",
            )
        owned = dataset.with_clients(self.offsets, self.order, [str(c) for c in range(self.num_clients)])
        return replace(owned, notes=notes)


@dataclass(frozen=True, kw_only=True)
class Iid:
    """Every client a random sample of the same size (`fedsim.data.deal.iid`)."""

    num_clients: int = 100

    def __post_init__(self) -> None:
        _check_positive_int("num_clients", self.num_clients)

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where there are more clients than samples."""
        rows, targets = _pool(dataset)
        deal = iid(targets, self.num_clients, stream(seed, "partition"))
        return _partition(dataset, rows, deal, {"name": "iid", **asdict(self)}, seed)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Every class in Dirichlet proportions (`fedsim.data.deal.dirichlet`, NIID-Bench's rule)."""

    num_clients: int = 100
    alpha: float = 0.5
    min_samples: int = 10

    def __post_init__(self) -> None:
        _check_positive_int("num_clients", self.num_clients)
        _check_positive_int("min_samples", self.min_samples)
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not (number and math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"partition.alpha must be a positive number, got {self.alpha!r}")

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the targets are no class labels or there are too few samples."""
        rows, targets = _pool(dataset)
        rng = stream(seed, "partition")
        deal = dirichlet(targets, self.num_clients, rng, alpha=self.alpha, min_samples=self.min_samples)
        return _partition(dataset, rows, deal, {"name": "dirichlet", **asdict(self)}, seed)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Every client a few shards of the samples sorted by label (`fedsim.data.deal.shards`)."""

    num_clients: int = 100
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        _check_positive_int("num_clients", self.num_clients)
        _check_positive_int("shards_per_client", self.shards_per_client)

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the targets are no class labels or there are more shards than samples."""
        rows, targets = _pool(dataset)
        each = self.shards_per_client
        deal = shards(targets, self.num_clients, stream(seed, "partition"), shards_per_client=each)
        return _partition(dataset, rows, deal, {"name": "shards", **asdict(self)}, seed)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


@dataclass(frozen=True, kw_only=True)
class Natural:
    """The data's own clients: all, or a random `num_clients` of them, in the data's order.

    Their own test and validation samples stay with them; a central test set stays as it is.
    """

    num_clients: int | None = None

    def __post_init__(self) -> None:
        if self.num_clients is not None:
            _check_positive_int("num_clients", self.num_clients)

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """Raises ValueError where the data has no clients of its own, or too few."""
        train = _subset(dataset.train, self._kept(dataset, seed))
        assert train.offsets is not None
        order = np.arange(train.num_samples) if train.order is None else train.order[: train.num_samples]
        recipe = {"name": "natural", **asdict(self)}
        drawn = None if self.num_clients is None else seed
        return _partition(dataset, None, Deal(train.offsets, order, {}), recipe, drawn)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        """Raises ValueError where the data has no clients of its own, or too few."""
        kept = self._kept(dataset, seed)
        if len(kept) == dataset.num_clients:
            return dataset
        return replace(
            dataset,
            train=_subset(dataset.train, kept),
            test=dataset.test and _subset(dataset.test, kept),
            validation=dataset.validation and _subset(dataset.validation, kept),
            client_ids=[dataset.client_ids[c] for c in kept],
            groups=[dataset.groups[c] for c in kept] if dataset.groups else (),
        )

    def _kept(self, dataset: FederatedDataset, seed: int) -> np.ndarray:
        """(num_clients,) int64: the chosen clients, ascending."""
        if not dataset.train.owned:
            raise ValueError(f"data={dataset.name} has no natural clients; choose partition=iid, dirichlet or shards")
        if self.num_clients is None:
            return np.arange(dataset.num_clients)
        if self.num_clients > dataset.num_clients:
            raise ValueError(
                f"partition.num_clients must be at most {dataset.num_clients}, the natural clients of "
                f"data={dataset.name}, got {self.num_clients}"
            )
        chosen = stream(seed, "partition").choice(dataset.num_clients, self.num_clients, replace=False)
        return np.sort(chosen)


def _subset(split: Split, kept: np.ndarray) -> Split:
    """The same samples, of which only the clients `kept` own theirs; untouched where that changes nothing."""
    if split.offsets is None or len(kept) == split.num_clients:
        return split
    sizes = split.sizes[kept]
    order = ranges(split.offsets[:-1][kept], sizes)
    if split.order is not None:
        order = split.order[order]
    return replace(split, offsets=np.concatenate([[0], np.cumsum(sizes)]), order=order)


def _pool(dataset: FederatedDataset) -> tuple[np.ndarray | None, np.ndarray]:
    """All owned training rows (M,), None where they are 0 ... M - 1; and their targets (M, ...)."""
    train = dataset.train
    targets = train.targets.numpy()
    if train.order is not None:
        rows = train.order if train.offsets is None else train.order[: train.num_samples]
        return rows, targets[rows]
    return None, targets[: train.num_samples]


def _partition(
    dataset: FederatedDataset, rows: np.ndarray | None, deal: Deal, recipe: dict[str, Any], seed: int | None
) -> Partition:
    return Partition(
        offsets=deal.offsets,
        order=deal.order if rows is None else rows[deal.order],
        num_samples=len(dataset.train.inputs),
        recipe=recipe,
        seed=seed,
        facts=deal.facts,
    )


def _check_positive_int(setting: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"partition.{setting} must be a positive integer, got {value!r}")
