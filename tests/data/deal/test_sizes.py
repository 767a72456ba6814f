"""Sizes: whole numbers that add up, at least the least, in the proportions of their law."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.deal import DirichletSizes, Exponential, LogNormal, Power, iid
from fedsim.data.deal.base import stable_argsort
from fedsim.data.deal.sizes import apportion, client_sizes
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.heterogeneity import gini
from fedsim.data.partition import Iid
from fedsim.rng import stream

LAWS = {
    "lognormal": LogNormal(sigma=1.5),
    "dirichlet": DirichletSizes(alpha=0.05),
    "linear": Power(exponent=1.0),
    "square": Power(exponent=2.0),
    "root": Power(exponent=0.5),
    "exponential": Exponential(ratio=1e6),
}


def sizes_of(law, num_samples, num_clients, seed=0):
    return client_sizes(law, num_samples, num_clients, stream(seed, "sizes"), recipe="iid")[0]


@given(
    st.sampled_from(sorted(LAWS)), st.integers(1, 200), st.integers(1, 5), st.integers(0, 3000), st.integers(0, 2**32)
)
@settings(max_examples=150, deadline=None)
def test_laws_give_sizes_that_add_up_and_reach_the_least(name, num_clients, least, more, seed):
    law = type(LAWS[name])(**{**vars(LAWS[name]), "min_samples": least})
    total = num_clients * least + more
    sizes = sizes_of(law, total, num_clients, seed)
    assert sizes.sum() == total
    assert sizes.min() >= least
    assert sizes.dtype == np.int64


def test_linear_square_and_exponential_by_hand():
    # 1 + 2 + 3 + 4 = 10 parts of 10; 1 + 4 + 9 + 16 = 30 parts of 10; 1 + 10 + 100 + 1000 = 1111 parts of 10
    assert sizes_of(Power(exponent=1.0), 100, 4).tolist() == [10, 20, 30, 40]
    assert sizes_of(Power(exponent=2.0), 300, 4).tolist() == [10, 40, 90, 160]
    assert sizes_of(Exponential(ratio=1000.0), 11_110, 4).tolist() == [10, 100, 1000, 10_000]
    assert sizes_of(Exponential(), 7, 1).tolist() == [7]


def test_apportion_is_the_method_of_largest_remainders():
    # quotas 7 * (0.47, 0.33, 0.2) = 3.29, 2.31, 1.4: floors 3, 2, 1, and the seventh goes to the remainder 0.4
    assert apportion(np.array([0.47, 0.33, 0.2]), 7, 1)[0].tolist() == [3, 2, 2]


def test_apportion_raises_the_small_and_lets_the_others_share_the_rest():
    # of 20, quotas are 0.2, 4.95, 14.85: the first gets 2, and 18 are shared 1 to 3 as 4.5 and 13.5, one of them up
    sizes, num_raised = apportion(np.array([1.0, 25.0, 75.0]), 20, 2)
    assert sizes.tolist() == [2, 5, 13]
    assert num_raised == 1
    # nothing to share but the least
    assert apportion(np.array([1.0, 0.0, 1e300]), 6, 2)[0].tolist() == [2, 2, 2]


def test_lognormal_sizes_have_the_deviation_of_their_law():
    sizes = sizes_of(LogNormal(sigma=0.7), 10_000_000, 10_000)
    # logarithms have deviation 0.7, to sampling error 0.7 / sqrt(2 * 10,000) = 0.005
    assert abs(np.log(sizes).std() - 0.7) < 0.02
    assert np.ptp(sizes_of(LogNormal(sigma=0.0), 1003, 10)) == 1


def test_dirichlet_sizes_have_the_variance_of_their_law():
    # Var of a share is (C - 1) / (C^2 (C alpha + 1)); alpha = 2, C = 50, over 400 draws
    shares = np.stack([sizes_of(DirichletSizes(alpha=2.0), 10**6, 50, seed) for seed in range(400)]) / 10**6
    expected = 49 / (50**2 * 101)
    assert shares.var() == pytest.approx(expected, rel=0.05)


def test_smaller_alpha_makes_sizes_more_unequal():
    ginis = [
        np.mean([gini(sizes_of(DirichletSizes(alpha=alpha), 10_000, 20, seed)) for seed in range(20)])
        for alpha in (0.01, 0.1, 1.0, 100.0)
    ]
    assert all(a > b + 0.05 for a, b in pairwise(ginis)), ginis


def test_what_was_raised_is_counted_and_noted():
    # quotas of 40: 4/3, 16/3, 12, 64/3; the first is raised to 2
    facts = client_sizes(Power(exponent=2.0, min_samples=2), 40, 4, stream(0, "x"), recipe="iid")[1]
    assert facts == {"num_raised": 1}
    train = Split(inputs=torch.zeros(40, 1), targets=torch.zeros(40, dtype=torch.int64))
    dataset = FederatedDataset(name="toy", train=train, num_classes=1)
    owned = Iid(num_clients=4, sizes=Power(exponent=2.0, min_samples=2))(dataset, 0)
    assert owned.notes[0].startswith("partition=iid: 1 of 4 clients would have fewer than partition.sizes.min_samples")
    assert client_sizes(Power(exponent=2.0), 300, 4, stream(0, "x"), recipe="iid")[1] == {}


def test_given_sizes_are_dealt_and_what_they_leave_is_counted():
    deal = iid(np.zeros(20), 3, stream(0, "x"), sizes=(5, 1, 9))
    assert np.diff(deal.offsets).tolist() == [5, 1, 9]
    assert len(np.unique(deal.order)) == 15
    assert deal.facts == {"num_left_out": 5}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 6), r"partition.sizes has 2 sizes for partition.num_clients=3: set partition.num_clients=2"),
        ((5, 6, 10), "partition.sizes add up to 21, but the data has 20 samples"),
        (LogNormal(min_samples=7), "3 clients at least 7 samples each: the data has 20; set partition.num_clients to"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        iid(np.zeros(20), 3, stream(0, "x"), sizes=sizes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(sigma=-1.0), "partition.sizes.sigma must be a number from 0 on, got -1.0"),
        (lambda: DirichletSizes(alpha=0), "partition.sizes.alpha must be a positive number, got 0"),
        (lambda: Power(exponent=math.nan), "partition.sizes.exponent must be a number from 0 on, got nan"),
        (lambda: Exponential(ratio="2"), "partition.sizes.ratio must be a positive number, got '2'"),  # pyright: ignore
        (lambda: LogNormal(min_samples=0), "partition.sizes.min_samples must be a positive integer, got 0"),
    ],
)
def test_laws_check_their_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("largest", [10, 70_000, 1 << 33])
def test_stable_argsort_equals_numpys(largest):
    values = np.random.default_rng(0).integers(0, largest, 2000)
    values[::3] = values[0]
    np.testing.assert_array_equal(stable_argsort(values), np.argsort(values, kind="stable"))
    assert stable_argsort(values[:0]).tolist() == []
