"""Which client owns which training samples: the partition, its digest, its table, and the dataset it makes."""

import hashlib
import itertools
import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from fedsim.data.deal.base import offsets_of, ranges
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.partition import file
from fedsim.data.partition.skew import apply_skew


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """Owners of the training samples.

    Attributes:
        offsets: (C + 1,) int64; client c owns the rows `order[offsets[c]:offsets[c + 1]]`.
        order: (M,) int64 row numbers of the training split.
        num_samples: rows of the training split, owned or not (N).
        recipe: the recipe's name under "name", and its options.
        seed: None where the partition is not random.
        facts: what the construction has to report (`fedsim.data.deal`): for dirichlet `num_tries` and `num_moved`,
            where sizes follow a law `num_raised`, where samples are unused `num_left_out`.
        dataset: name and fingerprint of the dataset that it was made for; None: unknown.
        held_out: (C, 2) int64: how many samples at the end of each client's range are for validation, and after
            them for test. None: all are for training.
        members, member_offsets: (S,) and (C + 1,) int64: client c is made of the data's own clients
            `members[member_offsets[c]:member_offsets[c + 1]]`, and has their test and validation samples too. None:
            the data's own clients are forgotten.
        skews: transformations of the clients' inputs, in order (`fedsim.data.partition.skew`).
    """

    offsets: np.ndarray
    order: np.ndarray
    num_samples: int
    recipe: dict[str, Any]
    seed: int | None = None
    facts: dict[str, int] = field(default_factory=dict)
    dataset: tuple[str, str] | None = None
    held_out: np.ndarray | None = None
    members: np.ndarray | None = None
    member_offsets: np.ndarray | None = None
    skews: tuple[dict[str, Any], ...] = ()

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(C,) int64: samples of each client, held out or not."""
        return np.diff(self.offsets)

    @property
    def num_dropped(self) -> int:
        """Rows that no client owns."""
        owned = np.zeros(self.num_samples, dtype=bool)
        owned[self.order] = True
        return self.num_samples - int(owned.sum())

    def digest(self) -> str:
        """Hexadecimal SHA-256 of who owns what and how it is transformed; how that was made does not count."""
        sha = hashlib.sha256()

        def add(numbers: Any) -> None:
            # The bytes must not depend on the machine's byte order.
            sha.update(np.ascontiguousarray(numbers, dtype="<i8").data)

        for numbers in ([self.num_samples, len(self.offsets), len(self.order)], self.offsets, self.order):
            add(numbers)
        for name in ("held_out", "members", "member_offsets"):
            if (numbers := getattr(self, name)) is not None:
                sha.update(name.encode())
                add(numbers)
        if self.skews:
            sha.update(json.dumps([self.skews, self.seed], sort_keys=True).encode())
        return sha.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest, one .npz file (`fedsim.data.partition.file`): completely, or not at all."""
        file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Partition":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or something else.
        """
        return file.load(cls, path)

    def frame(self, targets: np.ndarray, num_classes: int) -> pd.DataFrame:
        """One row a client: `client` (its number), `samples`, `train`, `validation` and `test` (of these, where some
        are held out), and `class_0` ... (samples of each class).

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
        return pd.concat([self.size_frame(), table], axis=1)

    def size_frame(self) -> pd.DataFrame:
        """`frame` without its `class_` columns, for targets that are no class labels."""
        columns = {"client": np.arange(self.num_clients), "samples": self.sizes}
        if self.held_out is not None:
            columns["train"] = self.sizes - self.held_out.sum(1)
            columns["validation"], columns["test"] = self.held_out.T
        return pd.DataFrame(columns)

    def check(self, dataset: FederatedDataset) -> None:
        """Raises ValueError where the partition is of another dataset."""
        if len(dataset.train.inputs) != self.num_samples:
            raise ValueError(
                f"the partition is of {self.num_samples} training samples, but data={dataset.name} has "
                f"{len(dataset.train.inputs)}: make the partition anew, or load the data it was made for"
            )
        if self.dataset is not None and (now := dataset.fingerprint()) != self.dataset[1]:
            raise ValueError(
                f"the partition is of data={self.dataset[0]} with hash {self.dataset[1]}, but data={dataset.name} has "
                f"hash {now}: make the partition anew, or load the data it was made for"
            )

    def apply(self, dataset: FederatedDataset) -> FederatedDataset:
        """The same samples under their new owners, called "0", "1", ...; test samples become central.

        Natural clients keep their names, and their test and validation samples (a group of them is called after its
        first one, "NAME+3" if it has four). Where the partition holds out test samples, these become the test set.

        Raises:
            ValueError: the partition is of another dataset, or holds out what the clients have already.
        """
        self.check(dataset)
        if self._keeps_everything(dataset):
            return dataset
        notes = [*dataset.notes, *self._notes()]
        splits: dict[str, Split | None] = {
            "train": replace(dataset.train, offsets=self.offsets, order=self.order),
            "validation": dataset.validation and self._regroup(dataset.validation),
            "test": dataset.test and self._regroup(dataset.test),
        }
        if self.members is None and (unused := splits.pop("validation")) is not None:
            notes.append(f"{unused.num_samples} validation samples of the former clients are not used")
        for skew in self.skews:
            for name, split in splits.items():
                if split is not None and split.owned:
                    assert self.seed is not None
                    splits[name] = replace(split, inputs=apply_skew(skew, split, self.seed, name))
        self._hold_out(splits, dataset, notes)
        return replace(
            dataset,
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits["test"],
            client_ids=self._names(dataset),
            groups=self._groups(dataset),
            notes=tuple(notes),
        )

    def _groups(self, dataset: FederatedDataset) -> list[str]:
        """What natural clients are part of; nothing where clients of different groups, or none, became one."""
        if not dataset.groups or self.members is None or self.member_offsets is None:
            return []
        bounds = self.member_offsets.tolist()
        found = [{dataset.groups[m] for m in self.members[a:b]} for a, b in itertools.pairwise(bounds)]
        return [str(*g) for g in found] if all(len(g) == 1 for g in found) else []

    def _hold_out(self, splits: dict[str, Split | None], dataset: FederatedDataset, notes: list[str]) -> None:
        """Move what is held out from splits["train"] to the other two."""
        if self.held_out is None:
            return
        whole = splits["train"]
        assert whole is not None
        first = self.sizes - self.held_out.sum(1)  # of training samples; then come the others
        start = self.offsets[:-1]
        splits["train"] = self._part(whole, start, first)
        start = start + first
        for name, counts in (("validation", self.held_out[:, 0]), ("test", self.held_out[:, 1])):
            old = splits.get(name)
            if counts.any():
                if old is not None and old.owned and old.num_samples:
                    raise ValueError(
                        f"the clients of data={dataset.name} have {name} samples already: set "
                        f"partition.holdout.{name}_fraction=0"
                    )
                if old is not None and old.num_samples:
                    notes.append(
                        f"{old.num_samples} central {name} samples are not used: partition.holdout.{name}_fraction "
                        f"makes samples of the clients' own the {name} set"
                    )
                splits[name] = self._part(whole, start, counts)
            start = start + counts

    def _part(self, whole: Split, starts: np.ndarray, counts: np.ndarray) -> Split:
        return replace(whole, offsets=offsets_of(counts), order=self.order[ranges(starts, counts)])

    def _keeps_everything(self, dataset: FederatedDataset) -> bool:
        """Whether the partition is the dataset's own, with all of its clients, in their order."""
        if self.members is None or self.held_out is not None or self.skews:
            return False
        return self.num_clients == dataset.num_clients and np.array_equal(self.members, np.arange(self.num_clients))

    def _names(self, dataset: FederatedDataset) -> list[str]:
        if self.members is None or self.member_offsets is None:
            return [str(c) for c in range(self.num_clients)]
        ids = list(dataset.client_ids)
        firsts = [ids[c] for c in self.members[self.member_offsets[:-1]].tolist()]
        more = (np.diff(self.member_offsets) - 1).tolist()
        return [f"{name}+{count}" if count else name for name, count in zip(firsts, more, strict=True)]

    def _regroup(self, split: Split) -> Split:
        """A split of the data under the new owners, if they are natural ones; else central."""
        if self.members is None or self.member_offsets is None:
            return replace(split, offsets=None, order=None)
        return regroup(split, self.members, self.member_offsets)

    def _notes(self) -> list[str]:
        recipe, facts, notes = self.recipe, self.facts, []
        while "base" in recipe:
            recipe = recipe["base"]
        name = recipe["name"]
        if facts.get("num_moved"):
            notes.append(
                f"partition={name}: none of {facts['num_tries']} draws gave every client "
                f"{recipe['min_samples']} samples, so {facts['num_moved']} samples were moved from "
                "the largest clients to the smallest (a larger partition.alpha, fewer clients or a smaller "
                "partition.min_samples avoid this)"
            )
        if facts.get("num_raised"):
            notes.append(
                f"partition={name}: {facts['num_raised']} of {self.num_clients} clients would have fewer than "
                "partition.sizes.min_samples samples by the law of their sizes, and got so many"
            )
        if facts.get("num_left_out"):
            notes.append(
                f"partition={name}: {facts['num_left_out']} of {self.num_samples} training samples are not used"
            )
        return notes


def regroup(split: Split, members: np.ndarray, member_offsets: np.ndarray) -> Split:
    """The same samples, of which client c owns those of the clients `members[member_offsets[c]:member_offsets[c + 1]]`.

    A split without owners is given back as it is.
    """
    if split.offsets is None:
        return split
    sizes = split.sizes[members]
    order = ranges(split.offsets[:-1][members], sizes)
    if split.order is not None:
        order = split.order[order]
    return replace(split, offsets=offsets_of(sizes)[member_offsets], order=order)
