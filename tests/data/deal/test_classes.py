"""Shares of classes: label skew and pathological by their rules, Dirichlet mixes at fixed sizes."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.deal import LogNormal, dirichlet, dirichlet_sized, iid, label_skew, pathological, shards
from fedsim.data.deal.class_shares import _repair
from fedsim.rng import stream


def counts_of(deal, targets):
    """(C, K) samples of each class."""
    owner = np.repeat(np.arange(len(deal.offsets) - 1), np.diff(deal.offsets))
    counts = np.zeros((len(deal.offsets) - 1, targets.max() + 1), dtype=np.int64)
    np.add.at(counts, (owner, targets[deal.order]), 1)
    return counts


def heterogeneity(counts):
    """Mean total variation distance between a client's label distribution and everyone's."""
    own = counts / counts.sum(1, keepdims=True)
    return 0.5 * np.abs(own - counts.sum(0) / counts.sum()).sum(1).mean()


def same_law(ours, theirs, runs):
    """Two samples of one law have a Kolmogorov-Smirnov distance below this with probability 1 - 1e-4 (Smirnov)."""
    points = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (ours, theirs)]
    return np.abs(below[0] - below[1]).max() < np.sqrt(np.log(2e4) / runs)


def niid_bench_label_skew(targets, num_clients, rng, each):
    """The rule in plain loops, as the paper states it; (C, K) counts."""
    num_classes = targets.max() + 1
    held = []
    for client in range(num_clients):
        mine = [client % num_classes]
        while len(mine) < each:
            other = int(rng.integers(num_classes))
            if other not in mine:
                mine.append(other)
        held.append(mine)
    counts = np.zeros((num_clients, num_classes), dtype=int)
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(targets == label))
        holders = [c for c in range(num_clients) if label in held[c]]
        for client, part in zip(holders, np.array_split(members, len(holders)), strict=True):
            counts[client, label] = len(part)
    return counts


def mcmahan_shards(targets, num_clients, rng, each):
    """Sort, cut, deal, in plain loops; (C, K) counts."""
    parts = np.array_split(np.argsort(targets, kind="stable"), num_clients * each)
    rng.shuffle(hat := list(range(len(parts))))
    counts = np.zeros((num_clients, targets.max() + 1), dtype=int)
    for client in range(num_clients):
        for _ in range(each):
            for row in parts[hat.pop()]:
                counts[client, targets[row]] += 1
    return counts


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (label_skew, niid_bench_label_skew, {"classes_per_client": 3}),
        (shards, mcmahan_shards, {"shards_per_client": 3}),
    ],
)
def test_follows_the_law_of_the_paper(ours, theirs, options):
    targets = np.repeat([0, 1, 2, 3, 4], [30, 60, 20, 50, 80])
    runs, (each,) = 300, options.values()
    mine = [counts_of(ours(targets, 7, stream(s, "ours"), **options), targets) for s in range(runs)]
    paper = [theirs(targets, 7, stream(s, "theirs"), each) for s in range(runs)]
    for statistic in (lambda c: c.sum(1).max(), lambda c: c.sum(1).min(), lambda c: c[0, 3], heterogeneity):
        a, b = (np.array([statistic(c) for c in side], dtype=float) for side in (mine, paper))
        assert same_law(a, b, runs)
    # the test has power: one class or shard more does not pass
    other = [theirs(targets, 7, stream(s, "other"), each + 1) for s in range(runs)]
    assert not same_law(a, np.array([heterogeneity(c) for c in other]), runs)


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([0, 1]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_clients_hold_exactly_so_many_classes_or_it_is_refused(num_classes, num_clients, each, seed, which):
    rule = (label_skew, pathological)[which]
    targets = np.tile(np.arange(num_classes) * 2, 15)  # only even labels occur; 15 > 12 holders
    if each > num_classes:
        with pytest.raises(ValueError, match=f"cannot give a client {each} classes: the data has {num_classes}"):
            rule(targets, num_clients, stream(seed, "x"), classes_per_client=each)
        return
    if num_clients * each < num_classes:
        with pytest.raises(ValueError, match="leaves a class without a holder"):
            rule(targets, num_clients, stream(seed, "x"), classes_per_client=each)
        return
    deal = rule(targets, num_clients, stream(seed, "x"), classes_per_client=each)
    counts = counts_of(deal, targets)[:, ::2]
    np.testing.assert_array_equal(np.sort(deal.order), np.arange(len(targets)))
    assert ((counts > 0).sum(1) == each).all()
    for column in counts.T:  # a class is split evenly
        assert np.ptp(column[column > 0]) <= 1
    if rule is label_skew and num_clients >= num_classes:
        assert all(counts[c, c % num_classes] for c in range(num_clients))
    if rule is pathological:
        assert np.ptp((counts > 0).sum(0)) <= 1


def test_pathological_differs_from_client_to_client():
    # 45 pairs of 10 classes; 1000 clients have most of them
    counts = counts_of(pathological(np.tile(np.arange(10), 300), 1000, stream(0, "x")), np.tile(np.arange(10), 300))
    assert len(np.unique(counts > 0, axis=0)) == 45


def test_a_class_with_fewer_samples_than_holders_is_refused():
    targets = np.array([0] * 50 + [1] * 3)
    with pytest.raises(ValueError, match="cannot split the 3 samples of class 1 among 5 holders"):
        label_skew(targets, 5, stream(0, "x"), classes_per_client=2)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (iid, {}),
        (dirichlet, {"alpha": 1e9, "min_samples": 1}),
        (dirichlet_sized, {"alpha": 1e9}),
        (label_skew, {"classes_per_client": 1}),
        (pathological, {"classes_per_client": 1}),
    ],
)
def test_which_samples_of_a_class_a_client_gets_is_chance(rule, options):
    # half of 400 samples of one class: of the first 200 about 100, with a deviation of sqrt(200 / 8) = 5
    deal = rule(np.zeros(400, dtype=np.int64), 2, stream(0, "x"), **options)
    assert 70 < (deal.order[: deal.offsets[1]] < 200).sum() < 130


def test_who_gets_the_larger_part_of_a_class_is_chance():
    sizes = [np.diff(label_skew(np.zeros(3, int), 2, stream(s, "x"), classes_per_client=1).offsets) for s in range(40)]
    assert {tuple(s) for s in sizes} == {(1, 2), (2, 1)}


def test_pathological_neighbours_are_strangers():
    # a pair of clients shares out an order of ten classes; were the pair neighbours, they would never share a class
    targets = np.repeat(np.arange(10), 40)
    counts = [counts_of(pathological(targets, 20, stream(s, "x"), classes_per_client=5), targets) for s in range(20)]
    assert any((c[0] * c[1]).any() for c in counts)


# Dirichlet shares


def test_classes_are_cut_where_the_paper_cuts_them():
    # one class, so that all clients have room: floor(103 cumsum(p)), the last one at 103
    compared = 0
    for seed in range(30):
        p = stream(seed, "x").dirichlet(np.full(4, 1.0))
        cuts = np.append(np.floor(np.cumsum(p)[:-1] * 103), 103)
        if np.diff(cuts, prepend=0).min() >= 1:  # else it is tried again
            deal = dirichlet(np.zeros(103, int), 4, stream(seed, "x"), alpha=1.0, min_samples=1)
            assert deal.offsets[1:].tolist() == cuts.tolist()
            compared += 1
    assert compared > 10


def test_a_client_with_an_equal_share_of_all_is_full():
    # a tiny alpha gives a class to one client, who has N / C samples then: the other class goes to the other client
    for seed in range(20):
        deal = dirichlet(np.repeat([0, 1], 10), 2, stream(seed, "x"), alpha=1e-9, min_samples=1)
        assert np.diff(deal.offsets).tolist() == [10, 10]
        assert deal.facts["num_tries"] == 1


def test_the_repair_takes_from_the_largest_any_of_their_samples_for_anyone():
    owners = np.repeat([0, 1, 2], [50, 50, 12])
    _repair(owners, np.array([50, 50, 12, 0, 0]), 10, stream(0, "x"))
    assert np.bincount(owners).tolist() == [40, 40, 12, 10, 10]
    for donor in range(2):
        given = np.flatnonzero(owners[donor * 50 : donor * 50 + 50] != donor)
        assert given.min() < 20 < 30 <= given.max(), "samples from one end of the donor's"
    for receiver in (3, 4):
        got = np.flatnonzero(owners == receiver)
        assert set(got // 50) == {0, 1}, "samples of one donor alone"


# Dirichlet mixes


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=150),
    st.sampled_from([1e-300, 0.01, 1.0, 1e300]),
    st.data(),
)
@settings(max_examples=120, deadline=None)
def test_dirichlet_sized_gives_exact_sizes_and_every_sample_once(targets, alpha, data):
    targets = np.array(targets)
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=len(targets)))
    while sum(sizes) > len(targets):
        sizes.pop()
    sizes = sizes or [len(targets)]
    deal = dirichlet_sized(targets, len(sizes), stream(1, "x"), alpha=alpha, sizes=tuple(sizes))
    assert np.diff(deal.offsets).tolist() == sizes
    assert len(np.unique(deal.order)) == len(deal.order) == sum(sizes)
    assert deal.facts.get("num_left_out", 0) == len(targets) - sum(sizes)


def test_dirichlet_sized_has_the_mixes_of_its_law_where_classes_do_not_run_out():
    # 40 clients ask for 20 of 40,000 samples, so none asks twice: a share has mean 1/4, and its count the variance of
    # a Dirichlet-multinomial, n p (1 - p) (n + A) / (1 + A) with A = 4 alpha (here 20 * 3/16 * 22 / 3 = 27.5)
    targets = np.tile(np.arange(4), 10_000)
    counts = np.concatenate(
        [
            counts_of(dirichlet_sized(targets, 40, stream(s, "x"), alpha=0.5, sizes=(20,) * 40), targets)
            for s in range(50)
        ]
    )
    assert counts.mean(0) == pytest.approx([5] * 4, abs=0.5)
    assert counts.var(0) == pytest.approx([27.5] * 4, rel=0.1)


def test_a_scarce_class_goes_to_any_of_its_askers():
    # 40 clients of 10 ask for 200 of a class of 100: the first 20 clients get 50, with a deviation of about 4
    targets = np.repeat([0, 1], [100, 300])
    counts = counts_of(dirichlet_sized(targets, 40, stream(0, "x"), alpha=1e9), targets)
    assert 25 < counts[:20, 0].sum() < 75


@pytest.mark.parametrize("sizes", [None, LogNormal(sigma=0.5)])
def test_smaller_alpha_makes_clients_of_given_sizes_more_different(sizes):
    targets = np.random.default_rng(0).integers(0, 10, 5000)

    def mean(alpha):
        deals = [dirichlet_sized(targets, 10, stream(s, "p"), alpha=alpha, sizes=sizes) for s in range(5)]
        return np.mean([heterogeneity(counts_of(deal, targets)) for deal in deals])

    means = [mean(alpha) for alpha in (0.01, 0.1, 1.0, 100.0)]
    assert all(a > b + 0.05 for a, b in pairwise(means)), means


def test_balanced_dirichlet_takes_less_than_a_second():
    targets = np.random.default_rng(0).integers(0, 10, 50_000)
    start = time.process_time()
    deal = dirichlet_sized(targets, 100, stream(0, "partition"), alpha=0.1)
    assert time.process_time() - start < 1  # about 0.01 s
    assert set(np.diff(deal.offsets)) == {500}
