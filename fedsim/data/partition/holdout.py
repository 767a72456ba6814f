"""Validation and test samples of each client's own, set aside within its share."""

import math
from dataclasses import dataclass

import numpy as np

from fedsim.data.deal.base import check_labels, stable_argsort
from fedsim.rng import counter_hash, stream


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What each client of n samples keeps from training.

    For test floor(test_fraction n + 1/2) samples, then for validation as many by the same rule; a client keeps at
    least one sample for training, and gives up first validation, then test, for it.

    Attributes:
        validation_fraction, test_fraction: from 0, and together below 1.
        stratified: each class of each client is divided in the client's proportions, exact but for rounding up or
            down; else a uniform draw.
    """

    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    stratified: bool = False

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and 0 <= value < 1):
                raise ValueError(f"partition.holdout.{name} must be in [0, 1), got {value!r}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"partition.holdout leaves nothing to train on: validation_fraction={self.validation_fraction} and "
                f"test_fraction={self.test_fraction} must add up to less than 1"
            )
        if self.stratified and not self:
            raise ValueError(
                "partition.holdout.stratified has no effect: set partition.holdout.test_fraction or validation_fraction"
            )

    def __bool__(self) -> bool:
        return self.validation_fraction > 0 or self.test_fraction > 0


NONE = Holdout()


def hold_out(
    offsets: np.ndarray, order: np.ndarray, targets: np.ndarray, holdout: Holdout, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put each client's validation and test samples at the end of its range.

    Args:
        offsets, order: as in `Partition`.
        targets: (N, ...) of all rows; class labels (N,) where stratified.
        holdout: the fractions.
        seed: of the draw.

    Returns:
        The new order, (M,) int64: client c's training samples, then its validation samples, then its test samples,
        each in the order that they had; and (C, 2) int64, how many of them are for validation and for test.

    Raises:
        ValueError: stratified, and the targets are no class labels.
    """
    sizes = np.diff(offsets)
    test = np.minimum((sizes * holdout.test_fraction + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    room = np.maximum(sizes - test - 1, 0)
    validation = np.minimum((sizes * holdout.validation_fraction + 0.5).astype(np.int64), room)

    rng = stream(seed, "holdout")
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = rng.permutation(len(order))
    if holdout.stratified:
        check_labels("... partition.holdout.stratified", targets)
        # A random order of the classes for each client, so that no class is favoured by its number.
        place = place[np.argsort(counter_hash(seed, "holdout", owner[place], targets[order[place]]), kind="stable")]
    place = place[stable_argsort(owner[place])]

    # Every (n / t)-th place of a client, from a random one on: exactly t places, and from each class, which lies in
    # one piece if stratified, its proportion rounded up or down. Of a shuffled range it is a uniform draw.
    kind = np.zeros(len(order), dtype=np.int64)
    left, remaining = place, sizes
    for name, take in ((2, test), (1, validation)):
        phase = rng.integers(0, np.maximum(remaining, 1))
        rank = np.arange(len(left)) - np.repeat(np.cumsum(remaining) - remaining, remaining)
        size, taken, start = (np.repeat(numbers, remaining) for numbers in (remaining, take, phase))
        hit = ((rank + 1) * taken + start) // size > (rank * taken + start) // size
        kind[left[hit]] = name
        left, remaining = left[~hit], remaining - take
    return order[stable_argsort(owner * 3 + kind)], np.stack([validation, test], axis=1)
