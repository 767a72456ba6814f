"""LEAF users with numeric inputs, packed into .npy arrays as the JSON streams by.

Memory holds the targets and one user's inputs; the inputs of all go straight to the disk.
"""

import contextlib
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fedsim.data.leaf_json import LeafUser, read_split

FORMAT = 1  # of the packed arrays: raise it whenever what is packed changes
# LEAF writes all digits of k/255; other writers keep six of them.
_BYTE_TOLERANCE = 1e-6


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change, in nanoseconds."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def offsets_of(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(C,) sizes to (C + 1,) int64 bounds."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def pack(files: dict[str, list[Path]], folder: Path, num_classes: int, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Write `{train,test}_{inputs,targets,offsets}.npy`, as `Split` wants them, into `folder`.

    `test_order.npy` is there where the users of test come in another order than those of train.

    Returns:
        "users": the clients' names; "left_out": how many users have no training samples.

    Raises:
        ValueError: a file is damaged, a user's samples are inconsistent, or no user of test is in train.
    """
    before = {path: stamp(path) for path in [*files["train"], *files["test"]]}
    packer = _Packer(files=files, folder=folder, num_classes=num_classes, input_shape=input_shape)
    # Whether all values are k/255 shows only at the end. Data that are not show it in the first user as a
    # rule, so a second attempt costs next to nothing.
    meta = packer.pack(np.uint8) or packer.pack(np.float32)
    assert meta is not None, "every number fits in float32"
    for path, was in before.items():
        if stamp(path) != was:
            raise ValueError(f"{path} changed while it was read: run again once it is complete")
    return meta


@dataclass(frozen=True, kw_only=True)
class _Packer:
    """Writes inputs, targets and offsets of both splits into `folder`."""

    files: dict[str, list[Path]]
    folder: Path
    num_classes: int
    input_shape: tuple[int, ...]

    def pack(self, dtype: DTypeLike) -> dict[str, Any] | None:
        """Pack the inputs as `dtype`; None where their values do not fit in it."""
        left_out: set[str] = set()
        train = self._write("train", dtype, None, left_out)
        if train is None:
            return None
        if not train:
            raise ValueError(f"{self.files['train'][0].parent} holds no samples: set data.root to a complete LEAF set")
        test = self._write("test", dtype, train, left_out)
        if test is None:
            return None
        if not test:
            raise ValueError(
                f"no user of {self.files['test'][0].parent} is in {self.files['train'][0].parent}: split the "
                "samples of every user (LEAF's preprocess.sh with -t sample), not the users"
            )
        np.save(self.folder / "train_offsets.npy", offsets_of(list(train.values())))
        np.save(self.folder / "test_offsets.npy", offsets_of([test.get(name, 0) for name in train]))
        if list(test) != [name for name in train if name in test]:
            stops = dict(zip(test, np.cumsum(list(test.values())), strict=True))
            ranges = [np.arange(stops[name] - test[name], stops[name]) for name in train if name in test]
            np.save(self.folder / "test_order.npy", np.concatenate(ranges))
        return {"users": list(train), "left_out": len(left_out)}

    def _write(
        self, split: str, dtype: DTypeLike, wanted: Container[str] | None, left_out: set[str]
    ) -> dict[str, int] | None:
        """Write one split's inputs and targets: its users' numbers of samples, as they lie in the files.

        Users outside `wanted` (None: users without samples) go to `left_out`.
        """
        sizes: dict[str, int] = {}
        targets: list[np.ndarray] = []
        with _growing(self.folder / f"{split}_inputs.npy", dtype, self.input_shape) as append:
            for user in read_split(self.files[split]):
                if (not user.y) if wanted is None else (user.name not in wanted):
                    left_out.add(user.name)
                    continue
                targets.append(self._targets(user))
                inputs = self._inputs(user)
                if dtype == np.uint8:
                    inputs = _as_bytes(inputs)
                if inputs is None:
                    return None
                append(inputs)
                sizes[user.name] = len(user.y)
        np.save(self.folder / f"{split}_targets.npy", np.concatenate([*targets, np.empty(0, dtype=np.int64)]))
        return sizes

    def _targets(self, user: LeafUser) -> np.ndarray:
        for target in user.y:
            if type(target) is not int or not 0 <= target < self.num_classes:
                raise ValueError(
                    f"{user.file}: user {user.name!r} has the label {target!r}, which is no integer from 0 "
                    f"to {self.num_classes - 1}: repair the file, or set the set's number of classes"
                )
        return np.array(user.y, dtype=np.int64)

    def _inputs(self, user: LeafUser) -> np.ndarray:
        """(n, *input_shape) float32, finite."""
        if not user.x:
            return np.empty((0, *self.input_shape), dtype=np.float32)
        try:
            inputs = np.asarray(user.x)
        except ValueError:
            raise self._unusable(user, "inputs of unequal lengths") from None
        if inputs.dtype.kind not in "iuf":
            raise self._unusable(user, "inputs that are not numbers")
        if inputs.shape[1:] not in (self.input_shape, (math.prod(self.input_shape),)):
            raise self._unusable(user, f"inputs of shape {inputs.shape[1:]}")
        with np.errstate(over="ignore"):
            inputs = inputs.astype(np.float32)
        if not np.isfinite(inputs).all():
            raise self._unusable(user, "inputs that are not finite float32 numbers")
        return inputs.reshape(-1, *self.input_shape)

    def _unusable(self, user: LeafUser, found: str) -> ValueError:
        return ValueError(
            f"{user.file}: user {user.name!r} has {found}, where samples of shape {self.input_shape} (or "
            "flat) are expected: repair the file, or set the shape of this LEAF set"
        )


def _as_bytes(inputs: np.ndarray) -> np.ndarray | None:
    """round(255 x) as uint8, where every x is k/255; else None."""
    scaled = inputs * 255
    rounded = np.rint(scaled)
    fits = (rounded >= 0) & (rounded <= 255) & (np.abs(scaled - rounded) <= 255 * _BYTE_TOLERANCE)
    return rounded.astype(np.uint8) if fits.all() else None


@contextlib.contextmanager
def _growing(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """An .npy file that takes rows until it closes: LEAF says how many there are only at the end."""
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
