"""The hetero Dirichlet deal: the law of NIID-Bench, and the repair where its tries are used up."""

import time
from itertools import pairwise

import numpy as np
import pytest

from fedsim.data.deal import dirichlet
from fedsim.data.partition import Partition
from fedsim.rng import stream


def niid_bench(targets, num_clients, rng, alpha, min_samples):
    """The rule in plain loops, sample by sample, as parity.md states it; (clients, classes) counts."""
    num_samples, num_classes = len(targets), targets.max() + 1
    while True:
        clients = [[] for _ in range(num_clients)]
        for label in range(num_classes):
            members = [i for i in range(num_samples) if targets[i] == label]
            rng.shuffle(members)
            p = rng.dirichlet([alpha] * num_clients)
            p = [0.0 if len(c) >= num_samples / num_clients else x for c, x in zip(clients, p, strict=True)]
            if sum(p) == 0:
                break  # where the rule divides by zero
            start, total = 0, 0.0
            for client, x in enumerate(p):
                total += x / sum(p)
                stop = len(members) if client == num_clients - 1 else int(np.floor(total * len(members)))
                clients[client] += members[start:stop]
                start = stop
        else:
            if min(len(c) for c in clients) >= min_samples:
                return np.array([[sum(targets[i] == k for i in c) for k in range(num_classes)] for c in clients])


def counts_of(deal, targets):
    partition = Partition(offsets=deal.offsets, order=deal.order, num_samples=len(targets), recipe={})
    return partition.frame(targets, int(targets.max()) + 1).filter(like="class_").to_numpy()


def heterogeneity(counts):
    """Mean total variation distance between a client's label distribution and everyone's."""
    own = counts / counts.sum(1, keepdims=True)
    return 0.5 * np.abs(own - counts.sum(0) / counts.sum()).sum(1).mean()


def largest_gap(a, b):
    """Kolmogorov and Smirnov's statistic: the largest difference of two empirical distribution functions."""
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return np.abs(below[0] - below[1]).max()


def test_dirichlet_follows_the_law_of_niid_bench():
    targets = np.repeat([0, 1, 2, 3], [12, 30, 8, 30])
    runs = 300
    ours, theirs = [], []
    for seed in range(runs):
        deal = dirichlet(targets, 4, stream(seed, "ours"), alpha=0.4, min_samples=5)
        assert deal.facts["num_moved"] == 0
        ours.append(counts_of(deal, targets))
        theirs.append(niid_bench(targets, 4, stream(seed, "theirs"), 0.4, 5))
    # P(gap > bound) = 2 exp(-bound^2 runs) = 1e-4 for equal laws (Smirnov's bound, two samples of equal size)
    bound = np.sqrt(np.log(2e4) / runs)
    for statistic in (
        lambda c: c.sum(1).max(),
        lambda c: c.sum(1).min(),
        lambda c: c[0, 0],
        lambda c: c[1, 3],
        lambda c: c[3, 3],
        heterogeneity,
    ):
        a, b = (np.array([statistic(c) for c in each], dtype=float) for each in (ours, theirs))
        assert largest_gap(a, b) < bound
    # the test has power: another alpha does not pass
    other = [counts_of(dirichlet(targets, 4, stream(s, "o"), alpha=0.8, min_samples=5), targets) for s in range(runs)]
    assert largest_gap(np.array([heterogeneity(c) for c in other]), a) > bound


def test_smaller_alpha_makes_clients_more_different():
    targets = np.random.default_rng(0).integers(0, 10, 5000)
    means = [
        np.mean(
            [heterogeneity(counts_of(dirichlet(targets, 10, stream(s, "p"), alpha=alpha), targets)) for s in range(5)]
        )
        for alpha in (0.01, 0.1, 1.0, 100.0)
    ]
    assert all(a > b + 0.1 for a, b in pairwise(means)), means


class OtherProcessor:
    """A generator whose Dirichlet vectors differ in the last bit, as those of other processors and C libraries may."""

    def __init__(self, rng):
        self.rng, self.bits = rng, np.random.default_rng(0)

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def dirichlet(self, alpha):
        drawn = self.rng.dirichlet(alpha)
        return np.nextafter(drawn, self.bits.choice([0.0, 1.0], len(drawn)))


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.1, 1.0])
def test_the_last_bit_of_a_draw_moves_no_sample(alpha):
    targets = np.arange(3000) % 62
    for seed in range(10):
        here, there = (
            dirichlet(targets, 30, make(stream(seed, "bits")), alpha=alpha, min_samples=1)
            for make in (lambda rng: rng, OtherProcessor)
        )
        assert np.array_equal(here.offsets, there.offsets)
        assert np.array_equal(here.order, there.order)


def test_a_partition_that_never_ends_elsewhere_is_repaired_in_time():
    targets = np.random.default_rng(0).integers(0, 10, 50_000)
    start = time.process_time()
    deal = dirichlet(targets, 1000, stream(0, "partition"), alpha=0.1)
    assert time.process_time() - start < 5  # about 0.8 s on a free core
    assert np.diff(deal.offsets).min() == 10
    assert 0 < deal.facts["num_moved"] < 2500
    assert heterogeneity(counts_of(deal, targets)) > 0.6  # the repair has not made it uniform


def test_repair_reaches_the_tightest_feasible_case():
    # 6 clients x 10 samples of 60: every client exactly 10, from one class that one client holds
    deal = dirichlet(np.zeros(60, dtype=np.int64), 6, stream(0, "partition"), alpha=0.001, min_samples=10)
    assert np.diff(deal.offsets).tolist() == [10] * 6
    assert deal.facts["num_tries"] == 1000
    assert 0 < deal.facts["num_moved"] <= 50
