"""Held-out samples: every client keeps some, and each sample is drawn equally often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.held_out import hold_out


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    fraction=st.floats(0, 0.99, allow_subnormal=False),  # torch may flush these to zero
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_held_out_samples_are_disjoint_complete_and_the_clients_own(
    sizes: list[int], fraction: float, seed: int, data: st.DataObject
) -> None:
    owners = np.repeat(np.arange(len(sizes)), sizes)
    owners = owners[data.draw(st.permutations(range(len(owners))))]
    held = hold_out(len(owners), owners, fraction, seed)
    assert sorted([*held.train, *held.test]) == list(range(len(owners)))
    assert held.train_offsets is not None
    assert held.test_offsets is not None
    for client, size in enumerate(sizes):
        train = held.train[held.train_offsets[client] : held.train_offsets[client + 1]]
        test = held.test[held.test_offsets[client] : held.test_offsets[client + 1]]
        assert np.all(owners[train] == client)
        assert np.all(owners[test] == client)
        assert np.all(np.diff(train) > 0)
        least = min(1, size - 1) if fraction else 0
        assert len(test) == min(max(round(size * fraction), least), size - 1)
    again = hold_out(len(owners), owners, fraction, seed)
    assert all(np.array_equal(one, other) for one, other in zip(held, again, strict=True))


def test_every_sample_is_held_out_equally_often() -> None:
    owners = np.array([0, 1, 1, 1, 1, 0])
    drawn = np.concatenate([hold_out(6, owners, 0.25, seed).test for seed in range(4000)])
    # One of client 0's two samples and one of client 1's four. Counts are binomial, with a deviation of at most 32.
    assert np.abs(np.bincount(drawn, minlength=6) / 4000 - [0.5, 0.25, 0.25, 0.25, 0.25, 0.5]).max() < 0.04
    assert len(hold_out(10, None, 0.3, 0).test) == 3
    with pytest.raises(ValueError, match=r"data.test_fraction is 1.0: choose a number from 0"):
        hold_out(10, None, 1.0, 0)
