"""Which samples are held out for tests where a data set has none: a share of each client's, or of all."""

from typing import NamedTuple

import numpy as np

from fedsim.data.deal.base import offsets_of
from fedsim.rng import counter_hash


class Held(NamedTuple):
    """Which rows are trained on and which are held out, client after client where there are clients.

    Attributes:
        train: (M,) int64 row numbers.
        test: (N - M,) int64 row numbers.
        train_offsets, test_offsets: (C + 1,) int64 bounds of the clients in them; None without clients.
    """

    train: np.ndarray
    test: np.ndarray
    train_offsets: np.ndarray | None
    test_offsets: np.ndarray | None


def hold_out(num_samples: int, owners: np.ndarray | None, fraction: float, seed: int) -> Held:
    """Hold out a random share of each client's samples, or of all where nobody owns them.

    Args:
        num_samples: N.
        owners: (N,) int64 numbers of the samples' clients, each of 0 ... C - 1 at least once; None: nobody owns them.
        fraction: the share, in [0, 1), rounded for each client; at least one sample is kept and, where there are two
            and the fraction is not 0, at least one held out.
        seed: of the draw; what is drawn of a client depends on its number and size alone.

    Raises:
        ValueError: the fraction is out of range.
    """
    check_fraction(fraction)
    numbers = np.zeros(num_samples, dtype=np.int64) if owners is None else owners
    sizes = np.bincount(numbers)
    held = held_out_sizes(sizes, fraction)
    starts = np.cumsum(sizes) - sizes
    by_owner = np.argsort(numbers, kind="stable")
    place = np.arange(num_samples) - np.repeat(starts, sizes)  # of a sample in its client, in the order of `by_owner`
    hashes = counter_hash(seed, "hold_out", numbers[by_owner], place)
    shuffled = by_owner[np.lexsort((hashes, numbers[by_owner]))]
    is_test = np.zeros(num_samples, dtype=bool)
    is_test[shuffled[place < np.repeat(held, sizes)]] = True
    train, test = by_owner[~is_test[by_owner]], by_owner[is_test[by_owner]]
    if owners is None:
        return Held(train, test, None, None)
    return Held(train, test, offsets_of(sizes - held), offsets_of(held))


def held_out_sizes(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """(C,) int64: how many of (C,) samples are held out at a share in [0, 1); see `hold_out`."""
    least = np.minimum(1, sizes - 1) if fraction else np.zeros_like(sizes)
    return np.clip(np.rint(sizes * fraction).astype(np.int64), least, sizes - 1)


def check_fraction(fraction: float) -> None:
    """Raises ValueError where a share of held-out samples is not in [0, 1)."""
    if not 0 <= fraction < 1:
        raise ValueError(f"data.test_fraction is {fraction}: choose a number from 0 up to, but not including, 1")
