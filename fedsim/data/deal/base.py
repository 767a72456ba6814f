"""What all deals share: their result, integer bounds, fast stable sorts, and the check of class labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Deal(NamedTuple):
    """Who gets which sample.

    Attributes:
        offsets: (C + 1,) int64; client c owns `order[offsets[c]:offsets[c + 1]]`.
        order: (M,) int64, sample numbers, each at most once.
        facts: what the construction has to report, by name; "num_left_out" counts the samples that nobody got.
    """

    offsets: np.ndarray
    order: np.ndarray
    facts: dict[str, int]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(sum of lengths,) int64: starts[0], starts[0] + 1, ..., then the next range, and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def offsets_of(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(C + 1,) int64: 0, and the running sums of (C,) sizes."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def even_bounds(num_samples: int, num_parts: int) -> np.ndarray:
    """(num_parts + 1,) int64: bounds of parts whose sizes differ by at most one."""
    return np.arange(num_parts + 1, dtype=np.int64) * num_samples // num_parts


def stable_argsort(values: np.ndarray) -> np.ndarray:
    """(N,) int64: `np.argsort(values, kind="stable")` of integers from 0 on, in linear time up to 2^32."""
    largest = int(values.max()) if len(values) else 0
    if largest < 1 << 16:
        return np.argsort(values.astype(np.uint16), kind="stable")
    if largest >= 1 << 32:
        return np.argsort(values, kind="stable")
    # NumPy sorts integers of 16 bits in linear time, wider ones not: sort by the low half, then by the high half.
    low = np.argsort((values & 0xFFFF).astype(np.uint16), kind="stable")
    high = np.argsort((values >> 16)[low].astype(np.uint16), kind="stable")
    return low[high]


def shuffled_by_class(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) int64: the samples class after class, in random order within each."""
    shuffled = rng.permutation(len(targets))
    return shuffled[stable_argsort(targets[shuffled])]


def gather(owners: np.ndarray, num_clients: int, rng: np.random.Generator, facts: dict[str, int]) -> Deal:
    """The deal in which sample i goes to `owners[i]` (N,), and to nobody where that is `num_clients`."""
    order = rng.permutation(len(owners))
    order = order[stable_argsort(owners[order])]
    offsets = offsets_of(np.bincount(owners, minlength=num_clients + 1)[:num_clients])
    return Deal(offsets, order[: offsets[-1]], facts)


def at_most(setting: str, bound: int) -> list[str]:
    """The advice to lower a setting, if that can help."""
    return [f"set partition.{setting} to at most {bound}"] if bound > 0 else []


def check_labels(recipe: str, targets: np.ndarray) -> None:
    """Raises ValueError where the targets are not (N,) integers from 0 on."""
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"partition={recipe} needs one integer class label a sample, but the targets have shape "
            f"{targets.shape} and type {targets.dtype}: choose partition=iid or partition=natural"
        )
    if len(targets) and targets.min() < 0:
        raise ValueError(f"partition={recipe} needs class labels from 0 on, but the targets have {targets.min()}")
