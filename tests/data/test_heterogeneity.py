"""Measures of heterogeneity, on cases derived by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data import heterogeneity
from fedsim.data.heterogeneity import effective_classes, gini, hellinger, jensen_shannon


def test_equal_mixes_are_at_distance_zero():
    counts = np.array([[1, 2, 3], [10, 20, 30]])
    np.testing.assert_allclose(hellinger(counts), 0, atol=1e-7)
    np.testing.assert_allclose(jensen_shannon(counts), 0, atol=1e-7)


def test_two_clients_of_one_class_each():
    # p = (1, 0), q = (1/2, 1/2). Hellinger: sqrt(1 - sqrt(1/2)). Jensen-Shannon: m = (3/4, 1/4),
    # KL(p || m) = log2(4/3), KL(q || m) = log2(2/3) / 2 + log2(2) / 2, and the divergence is half of their sum.
    counts = np.array([[5, 0], [0, 5]])
    np.testing.assert_allclose(hellinger(counts), math.sqrt(1 - math.sqrt(0.5)))
    divergence = (math.log2(4 / 3) + math.log2(2 / 3) / 2 + 0.5) / 2
    np.testing.assert_allclose(jensen_shannon(counts), math.sqrt(divergence))


def test_a_rare_class_of_its_own_is_almost_at_distance_one():
    counts = np.array([[10**9, 0], [0, 1]])
    assert hellinger(counts)[1] == pytest.approx(1, abs=1e-4)
    assert jensen_shannon(counts)[1] == pytest.approx(1, abs=1e-4)


def test_effective_classes_by_hand():
    # equal shares of n classes: n. Shares 1/2, 1/4, 1/4: entropy 1.5 log 2, so 2^1.5
    counts = np.array([[4, 4, 4, 4], [7, 0, 0, 0], [0, 3, 3, 0], [2, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(effective_classes(counts), [4, 1, 2, 2**1.5, math.nan])


def test_gini_by_hand():
    assert gini(np.array([5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)
    # differences |1 - 3| twice of four pairs, mean 1, over twice the mean size 2
    assert gini(np.array([3, 1])) == pytest.approx(1 / 4)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_gini_is_the_mean_absolute_difference_over_twice_the_mean(sizes):
    pairs = [abs(a - b) for a in sizes for b in sizes]
    assert gini(np.array(sizes)) == pytest.approx(np.mean(pairs) / (2 * np.mean(sizes)), abs=1e-12)


def test_many_clients_go_through_in_parts(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 5, (50, 4))
    counts[7] = 0
    whole = [measure(counts) for measure in (hellinger, jensen_shannon, effective_classes)]
    monkeypatch.setattr(heterogeneity, "_CHUNK", 7)
    for measure, before in zip((hellinger, jensen_shannon, effective_classes), whole, strict=True):
        np.testing.assert_array_equal(measure(counts), before)
        assert np.flatnonzero(np.isnan(before)).tolist() == [7]
