"""LEAF's JSON, written one user at a time, so that other tools can read any federated dataset.

    write_leaf(dataset, "exported")          # exported/train/*.json, exported/test/*.json

A file holds {"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}, and "hierarchies"
where the clients have groups. Memory holds one user's samples.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.text import CHARACTERS, PAD, Tokens
from fedsim.objective import IGNORED

SAMPLES_PER_FILE = 20_000  # whoever reads a file with plain json holds it whole

Encode = Callable[[Tensor, Tensor], tuple[list[Any], list[Any]]]
"""Stored inputs (n, ...) and targets (n, ...) of one client to the lists x and y."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One user of a split that is to be written.

    Attributes:
        name: the user's name.
        size: its number of samples.
        group: its entry in "hierarchies"; None writes no such list.
        load: reads {"x": [...], "y": [...]} with `size` samples.
    """

    name: str
    size: int
    group: str | None
    load: Callable[[], dict[str, list[Any]]]


def write_split(folder: Path, entries: Sequence[Entry], stem: str = "data") -> None:
    """Write users as `STEM_0000.json`, `STEM_0001.json` ... into `folder`, which is made.

    Raises:
        ValueError: two users share a name.
    """
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two users are called {twice!r}, and LEAF's JSON needs a name for each: rename one")
    folder.mkdir(parents=True)
    for number, part in enumerate(_parts(entries)):
        lists: dict[str, list[Any]] = {"users": [e.name for e in part], "num_samples": [e.size for e in part]}
        if all(entry.group is not None for entry in part):
            lists["hierarchies"] = [entry.group for entry in part]
        with (folder / f"{stem}_{number:04d}.json").open("w", encoding="utf-8") as file:
            file.write("{" + "".join(f"{json.dumps(key)}: {json.dumps(value)}, " for key, value in lists.items()))
            file.write('"user_data": {')
            for i, entry in enumerate(part):
                record = entry.load()
                assert len(record["x"]) == len(record["y"]) == entry.size
                file.write(f"{', ' if i else ''}{json.dumps(entry.name)}: {json.dumps(record)}")
            file.write("}}")


def _parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Runs of users with about `SAMPLES_PER_FILE` samples, at least one run."""
    start = total = 0
    for stop, entry in enumerate(entries):
        if total and total + entry.size > SAMPLES_PER_FILE:
            yield entries[start:stop]
            start, total = stop, 0
        total += entry.size
    yield entries[start:]


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose content moves into `folder` if all goes well: it is complete or not there.

    Raises:
        ValueError: `folder` holds one of these splits already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        made = sorted(temporary.iterdir())
        for path in made:
            if (folder / path.name).exists():
                raise ValueError(f"{folder / path.name} exists: delete it, or choose another folder to write to")
        for path in made:
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_leaf(dataset: FederatedDataset, folder: str | Path, encode: Encode | None = None) -> None:
    """Export a dataset: train/, and test/ and val/ where it has them, of LEAF's JSON files in `folder`.

    Args:
        dataset: clients own its training samples. Test samples that nobody owns become those of one user, "central".
        folder: made if need be; it must not hold one of the splits.
        encode: how samples are written. None: tokens of characters as strings and of words as LEAF's Reddit or
            Sent140 has them, bytes as k/255 (LEAF's images), other numbers as they are; what has more dimensions
            than one becomes a flat list, as LEAF's images are.

    Raises:
        ValueError: the clients own nothing yet, or the folder holds such a split already.
    """
    if not dataset.train.owned:
        raise ValueError(f"data={dataset.name} has no clients yet; apply a partition before it is written")
    encode = encode or _encoding(dataset)
    splits = {"train": dataset.train, "test": dataset.test, "val": dataset.validation}
    with output_folder(Path(folder).expanduser()) as temporary:
        for name, split in splits.items():
            if split is not None:
                write_split(temporary / name, _entries(dataset, split, encode), dataset.name)


def _entries(dataset: FederatedDataset, split: Split, encode: Encode) -> list[Entry]:
    def load(rows: Tensor) -> dict[str, list[Any]]:
        x, y = encode(split.inputs[rows], split.targets[rows])
        return {"x": x, "y": y}

    if not split.owned:
        everything = torch.arange(len(split.inputs))
        group = "central" if dataset.groups else None
        return [Entry(name="central", size=len(everything), group=group, load=lambda: load(everything))]
    return [
        Entry(
            name=name,
            size=int(split.sizes[client]),
            group=dataset.groups[client] if dataset.groups else None,
            load=lambda client=client: load(torch.from_numpy(split.rows(client))),
        )
        for client, name in enumerate(dataset.client_ids)
    ]


def _encoding(dataset: FederatedDataset) -> Encode:
    if not isinstance(dataset.preprocess, Tokens):
        return _numbers
    vocabulary = dataset.preprocess.vocabulary
    if vocabulary == tuple(CHARACTERS):
        return lambda inputs, targets: (
            ["".join(vocabulary[i] for i in row) for row in inputs.tolist()],
            [vocabulary[i] for i in targets.tolist()],
        )
    return _Words(vocabulary).comments if dataset.train.targets.dim() == 2 else _Words(vocabulary).tweets


def _numbers(inputs: Tensor, targets: Tensor) -> tuple[list[Any], list[Any]]:
    flat = inputs.flatten(1) if inputs.dim() > 1 else inputs
    return (flat.double() / 255 if flat.dtype == torch.uint8 else flat).tolist(), targets.tolist()


@dataclass(frozen=True)
class _Words:
    """Tokens as words."""

    vocabulary: tuple[str, ...]

    def tweets(self, inputs: Tensor, targets: Tensor) -> tuple[list[Any], list[Any]]:
        """Sent140's columns: id, date, query, user, text."""
        texts = (" ".join(w for w in words if w != PAD) for words in self._words(inputs))
        return [["", "", "", "", text] for text in texts], targets.tolist()

    def comments(self, inputs: Tensor, targets: Tensor) -> tuple[list[Any], list[Any]]:
        """Reddit's comments, of one sequence each."""
        counts = (targets != IGNORED).long().tolist()
        labels = [
            {"target_tokens": [words], "count_tokens": [count]}
            for words, count in zip(self._words(targets), counts, strict=True)
        ]
        return [[words] for words in self._words(inputs)], labels

    def _words(self, tokens: Tensor) -> list[list[str]]:
        return [[PAD if i == IGNORED else self.vocabulary[i] for i in row] for row in tokens.tolist()]
