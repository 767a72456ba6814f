"""LEAF users packed into .npy arrays as the JSON streams by.

What a set's x and y mean is its recipe's business (`leaf_numbers`, `leaf_text`, `leaf_celeba`). Memory holds one user's
samples and two integers for every user; the rest goes straight to the disk.
"""

import contextlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from fedsim.data.deal.base import offsets_of
from fedsim.data.leaf_json import LeafUser, read_split

FORMAT = 2  # of the packed arrays: raise it whenever what is packed changes

Files = dict[str, list[Path]]
"""The JSON files of "train", "test" and, where there is one, "val"."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the samples of a user become rows.

    Attributes:
        dtype, input_shape: of the inputs' rows.
        target_shape: of the targets' rows, which are int64.
        encode: LeafUser -> inputs (n, *input_shape) and targets (n, *target_shape), where n need not be the user's
            number of samples in the JSON; None where the inputs do not fit `dtype`.
        facts: what else is worth keeping, as JSON can hold it; `encode` may add to it.
    """

    dtype: DTypeLike
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...] = ()
    encode: Callable[[LeafUser], tuple[np.ndarray, np.ndarray] | None]
    facts: dict[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """What a LEAF set's x and y mean."""

    @property
    def key(self) -> list[Any]:
        """All that the packed arrays depend on beside the files, as JSON can hold it."""
        ...

    def encodings(self, files: Files) -> Iterator[Encoding]:
        """Encodings to try in turn, until one fits all samples; they may read the files first."""
        ...


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change, in nanoseconds."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def pack(files: Files, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Write `{train,test,val}_{inputs,targets,offsets}.npy`, as `Split` wants them, into `folder`.

    `test_order.npy` is there where the users of test come in another order than those of train, and
    `test_offsets.npy` is not where no user of test is one of train: then nobody owns the samples of test. The same
    holds for val.

    Returns:
        "users": the clients' names; "groups": theirs, or []; "left_out": how many users have no training samples;
        "strangers": the splits whose samples nobody owns; "facts": the recipe's.

    Raises:
        ValueError: a file is damaged, or a user's samples are inconsistent.
    """
    before = {path: stamp(path) for paths in files.values() for path in paths}
    # Whether all values fit shows only at the end. Data that do not show it in the first user as a rule, so a second
    # attempt costs next to nothing.
    attempts = (_Packer(files=files, folder=folder, encoding=e).pack() for e in recipe.encodings(files))
    meta = next((meta for meta in attempts if meta is not None), None)
    assert meta is not None, "a recipe's last encoding takes everything"
    for path, was in before.items():
        if stamp(path) != was:
            raise ValueError(f"{path} changed while it was read: run again once it is complete")
    return meta


@dataclass(frozen=True, kw_only=True)
class _Packer:
    """Writes inputs, targets and offsets of all splits into `folder`."""

    files: Files
    folder: Path
    encoding: Encoding
    groups: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def pack(self) -> dict[str, Any] | None:
        """Pack all samples; None where their values do not fit."""
        train = self._write("train", None)
        if train is None:
            return None
        train = {name: size for name, size in train.items() if size}
        if not train:
            raise ValueError(f"{self.files['train'][0].parent} holds no samples: set data.root to a complete LEAF set")
        np.save(self.folder / "train_offsets.npy", offsets_of(list(train.values())))
        strangers = []
        for split in self.files:
            if split == "train":
                continue
            before = set(self.left_out)
            found = self._write(split, train)
            if found is not None and not found:  # a set that LEAF has split by user
                strangers.append(split)
                found = self._write(split, None)
                self.left_out.intersection_update(before)
            if found is None:
                return None
            if split not in strangers:
                self._match(split, train, found)
        groups = [self.groups.get(name) for name in train]
        return {
            "users": list(train),
            "groups": groups if all(group is not None for group in groups) else [],
            "left_out": len(self.left_out),
            "strangers": strangers,
            "facts": self.encoding.facts,
        }

    def _match(self, split: str, train: dict[str, int], found: dict[str, int]) -> None:
        """Say which of the split's rows each user of train owns."""
        np.save(self.folder / f"{split}_offsets.npy", offsets_of([found.get(name, 0) for name in train]))
        if list(found) != [name for name in train if name in found]:
            stops = dict(zip(found, np.cumsum(list(found.values())), strict=True))
            ranges = [np.arange(stops[name] - found[name], stops[name]) for name in train if name in found]
            np.save(self.folder / f"{split}_order.npy", np.concatenate(ranges))

    def _write(self, split: str, wanted: Container[str] | None) -> dict[str, int] | None:
        """Write one split's inputs and targets: its users' numbers of rows, as they lie in the files.

        Users outside `wanted` (None: users without samples) are left out.
        """
        encoding, sizes = self.encoding, dict[str, int]()
        with (
            growing(self.folder / f"{split}_inputs.npy", encoding.dtype, encoding.input_shape) as append_inputs,
            growing(self.folder / f"{split}_targets.npy", np.int64, encoding.target_shape) as append_targets,
        ):
            for user in read_split(self.files[split], self.groups):
                if (not user.y) if wanted is None else (user.name not in wanted):
                    self.left_out.add(user.name)
                    continue
                encoded = encoding.encode(user)
                if encoded is None:
                    return None
                inputs, targets = encoded
                if wanted is None and not len(targets):
                    self.left_out.add(user.name)
                    continue
                append_inputs(inputs)
                append_targets(targets)
                sizes[user.name] = len(targets)
        return sizes


@contextlib.contextmanager
def growing(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """An .npy file that takes rows of `shape` until it closes, where nobody knows beforehand how many there are."""
    count = 0

    def write_header() -> None:
        # NumPy pads a header so that the first dimension can be rewritten in place.
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": (count, *shape),
        }
        np.lib.format.write_array_header_1_0(file, header)

    def append(rows: np.ndarray) -> None:
        nonlocal count
        assert rows.dtype == dtype
        assert rows.shape[1:] == shape
        file.write(rows.tobytes())
        count += len(rows)

    with path.open("wb") as file:
        write_header()
        start = file.tell()
        yield append
        file.seek(0)
        write_header()
        assert file.tell() == start, "the header grew over the first row"
