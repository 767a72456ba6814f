"""LEAF sets whose x are numbers and whose y are classes: FEMNIST, synthetic."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fedsim.data.leaf_json import LeafUser
from fedsim.data.leaf_pack import Encoding, Files

# LEAF writes all digits of k/255; other writers keep six of them.
_BYTE_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """uint8 inputs where every value of all splits is k/255, else float32; the JSON may have them flat.

    Attributes:
        num_classes: targets are integers in [0, num_classes).
        input_shape: shape of one sample.
    """

    num_classes: int
    input_shape: tuple[int, ...]

    @property
    def key(self) -> list[Any]:
        return ["numbers", self.num_classes, list(self.input_shape)]

    def encodings(self, files: Files) -> Iterator[Encoding]:
        for dtype in (np.uint8, np.float32):
            yield Encoding(
                dtype=dtype, input_shape=self.input_shape, encode=lambda user, dtype=dtype: self._encode(user, dtype)
            )

    def _encode(self, user: LeafUser, dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray] | None:
        targets, inputs = class_targets(user, self.num_classes), self._inputs(user)
        if dtype == np.uint8:
            inputs = _as_bytes(inputs)
        return None if inputs is None else (inputs, targets)

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


def class_targets(user: LeafUser, num_classes: int) -> np.ndarray:
    """(n,) int64 classes of a user.

    Raises:
        ValueError: one of them is no integer in [0, num_classes).
    """
    for target in user.y:
        if type(target) is not int or not 0 <= target < num_classes:
            raise ValueError(
                f"{user.file}: user {user.name!r} has the label {target!r}, which is no integer from 0 "
                f"to {num_classes - 1}: repair the file, or set the set's number of classes"
            )
    return np.array(user.y, dtype=np.int64)


def _as_bytes(inputs: np.ndarray) -> np.ndarray | None:
    """round(255 x) as uint8, where every x is k/255; else None."""
    scaled = inputs * 255
    rounded = np.rint(scaled)
    fits = (rounded >= 0) & (rounded <= 255) & (np.abs(scaled - rounded) <= 255 * _BYTE_TOLERANCE)
    return rounded.astype(np.uint8) if fits.all() else None
