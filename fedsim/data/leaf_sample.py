"""LEAF's sampling, its filter of small users and its split, as arithmetic on numbers of samples.

The meaning is that of LEAF's README files (Caldas et al. 2018), in this order: sample, remove small users, split.
Nothing here reads a sample: a sample is its number when all users' samples are counted up in the files' order.
Departures from LEAF's programs, which contradict their description: a user with exactly the smallest number of samples
stays; fractions are those that were written (0.29 of 100 is 29); a truncated user keeps a random part of its
samples, not the first ones in a random order; one quota holds for all files, not one for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np

from fedsim.data.deal.base import even_bounds, offsets_of
from fedsim.data.plays import split_in_time
from fedsim.rng import stream


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Users and the numbers of their samples.

    Attributes:
        names: (U,).
        groups: (U,), or empty.
        samples: one (n,) int64 array of sample numbers for each user.
    """

    names: Sequence[str]
    groups: Sequence[str]
    samples: Sequence[np.ndarray]

    @property
    def sizes(self) -> np.ndarray:
        """(U,) int64: samples of each user."""
        return np.array([len(own) for own in self.samples], dtype=np.int64)

    def keep(self, users: Sequence[int] | np.ndarray, samples: Sequence[np.ndarray] | None = None) -> "Selection":
        """Some of the users, in that order, with other samples if given."""
        return Selection(
            names=[self.names[u] for u in users],
            groups=[self.groups[u] for u in users] if self.groups else (),
            samples=[self.samples[u] for u in users] if samples is None else samples,
        )


def fraction_of(flag: str, value: str | float, *, whole: bool) -> Fraction:
    """The fraction as it was written, in (0, 1), or (0, 1] if `whole`.

    Raises:
        ValueError: it is out of range; the message names the flag.
    """
    try:
        fraction = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not (0 < fraction <= 1 if whole else 0 < fraction < 1):
        raise ValueError(f"{flag} must be a fraction {'up to 1' if whole else 'below 1'}, such as 0.1, got {value}")
    return fraction


def sample_niid(everyone: Selection, fraction: Fraction, seed: int, *, in_time: bool) -> Selection:
    """Users in a random order, whole, until floor(fraction N) samples are taken; the last one is truncated.

    Args:
        everyone: all users.
        fraction: of the N samples.
        seed: of the draws.
        in_time: a truncated user keeps its first samples, else a random part of them, in order.
    """
    quota = _quota(everyone, fraction)
    rng = stream(seed, "leaf_sample")
    order = rng.permutation(len(everyone.names))
    ends = np.cumsum(everyone.sizes[order])
    count = int(np.searchsorted(ends, quota)) + 1
    chosen = everyone.keep(order[:count])
    last = chosen.samples[-1]
    room = len(last) - int(ends[count - 1] - quota)
    part = np.arange(room) if in_time else np.sort(rng.choice(len(last), room, replace=False))
    return Selection(names=chosen.names, groups=chosen.groups, samples=[*chosen.samples[:-1], last[part]])


def sample_iid(everyone: Selection, fraction: Fraction, user_fraction: Fraction, seed: int) -> Selection:
    """floor(fraction N) of all samples, each equally likely, dealt evenly to round(user_fraction U) new users.

    The new users are called 0, 1, ...; their numbers of samples differ by one at most.
    """
    quota = _quota(everyone, fraction)
    num_users = max(1, round(user_fraction * len(everyone.names)))
    if num_users > quota:
        raise ValueError(f"{quota} samples are too few for {num_users} users: raise --sf or lower --iu")
    pool = np.concatenate(everyone.samples)
    drawn = pool[stream(seed, "leaf_sample").permutation(len(pool))[:quota]]
    samples = [np.sort(drawn[start:stop]) for start, stop in pairwise(even_bounds(quota, num_users).tolist())]
    return Selection(names=[str(i) for i in range(num_users)], groups=(), samples=samples)


def remove_small(everyone: Selection, min_samples: int) -> Selection:
    """The users with at least `min_samples` samples."""
    if min_samples < 1:
        raise ValueError(f"-k must be at least 1, got {min_samples}")
    return everyone.keep(np.flatnonzero(everyone.sizes >= min_samples))


def split_users(everyone: Selection, fraction: Fraction, seed: int) -> tuple[Selection, Selection]:
    """floor(fraction U) users for training, drawn at random, the others for testing; both in the given order."""
    num_users = len(everyone.names)
    num_train = floor(fraction * num_users)
    if not 0 < num_train < num_users:
        raise ValueError(f"-t user leaves {num_train} of {num_users} users for training: change --tf, or use -t sample")
    drawn = stream(seed, "leaf_split").permutation(num_users)
    return everyone.keep(np.sort(drawn[:num_train])), everyone.keep(np.sort(drawn[num_train:]))


def split_samples(
    everyone: Selection, fraction: Fraction, seed: int, window: int | None
) -> tuple[Selection, Selection]:
    """max(1, floor(fraction n)) of each user's n samples for training, the others for testing, both in order.

    Args:
        everyone: users; those without a sample for both are left out.
        fraction: of the samples.
        seed: of the draw.
        window: None draws at random; else samples are windows of a text that slide by one place, the first are for
            training, and between the two are the window - 1 whose text overlaps both.
    """
    users, train, test = [], [], []
    for user, own in enumerate(everyone.samples):
        if len(own) < 2:
            continue
        num_train, start = split_in_time(len(own), fraction, 1 if window is None else window)
        order = own if window is not None else own[stream(seed, "leaf_split", client=user).permutation(len(own))]
        if start >= len(own):
            continue
        users.append(user)
        train.append(np.sort(order[:num_train]))
        test.append(np.sort(order[start:]))
    if not users:
        raise ValueError("no user has enough samples to train and test on: lower --tf or raise --sf")
    return everyone.keep(users, train), everyone.keep(users, test)


def all_samples(
    names: Sequence[str], groups: Sequence[str], kept: Sequence[np.ndarray], sizes: np.ndarray
) -> Selection:
    """Every user with its own samples `kept`, which count from 0 for each user, of `sizes` in the files."""
    starts = offsets_of(sizes)
    return Selection(
        names=names, groups=groups, samples=[start + own for start, own in zip(starts, kept, strict=False)]
    )


def _quota(everyone: Selection, fraction: Fraction) -> int:
    total = int(everyone.sizes.sum())
    quota = floor(fraction * total)
    if quota < 1:
        raise ValueError(f"--sf={float(fraction):g} of {total} samples is none: raise it")
    return quota
