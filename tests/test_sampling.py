"""Cohorts: functions of (seed, round), uniform, of the size that was asked for."""

import numpy as np
import pytest

from fedsim.sampling import cohort_size, uniform


def test_a_cohort_is_a_function_of_seed_and_round():
    sample = uniform(clients(1000), 50)
    assert np.array_equal(sample(1, 2), sample(1, 2))
    assert not np.array_equal(sample(1, 2), sample(1, 3))
    assert not np.array_equal(sample(1, 2), sample(2, 2))


def test_a_cohort_has_distinct_clients_and_each_comes_equally_often():
    """4,000 draws of 5 of 20: each client 1,000 times; the standard deviation is 27, the bound 5 of them."""
    sample = uniform(clients(20), 5)
    draws = np.stack([sample(0, r) for r in range(4000)])
    assert all(len(set(d)) == 5 for d in draws)
    assert np.abs(np.bincount(draws.ravel(), minlength=20) - 1000).max() < 137


@pytest.mark.parametrize(("asked", "size"), [(1, 1), (100, 100), (1.0, 100), (0.1, 10), (0.001, 1)])
def test_counts_and_fractions(asked, size):
    assert cohort_size(asked, 100) == size


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (101, "clients_per_round=101, but there are 100 clients: choose 1 to 100"),
        (0, "there are 100 clients"),
        (1.5, "a fraction must be in"),
        (-0.1, "a fraction must be in"),
    ],
)
def test_impossible_cohorts_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        cohort_size(asked, 100)


def test_a_million_clients_are_drawn_from_at_once():
    assert len(uniform(clients(1_000_000), 10)(0, 1)) == 10
