"""Robust rules: the papers' formulas as loops over small matrices, and what each withstands."""

import itertools
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim.robust.store as store_module
from fedsim.robust import bulyan, geometric_median, krum, mean, median, multi_krum, norm_bounding, trimmed_mean
from fedsim.robust.store import UpdateStore


def apply(aggregator, rows, weights=None, order=None):
    rows = torch.as_tensor(rows, dtype=torch.float64)
    store = UpdateStore(range(len(rows)), rows.shape[1], dtype=rows.dtype, memory_bytes=2 * rows[0].nbytes)
    for i in order or range(len(rows)):
        store.put([i], rows[i : i + 1], [1.0 if weights is None else weights[i]])
    aggregator.require(len(rows))
    return aggregator.rule(store).numpy()


def matrix(num, size=5, seed=0):
    return np.random.default_rng(seed).normal(size=(num, size))


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def krum_loop(rows, num_attackers, neighbours=None):
    """Blanchard et al. 2017, section 4: each one's sum over its nearest others."""
    count = len(rows) - num_attackers - 2 if neighbours is None else neighbours
    return [sum(sorted(distance(a, b) for j, b in enumerate(rows) if j != i)[:count]) for i, a in enumerate(rows)]


@pytest.mark.parametrize("num", [1, 4, 7])
def test_median_is_pythons(num):
    rows = matrix(num)
    np.testing.assert_allclose(apply(median(), rows), [statistics.median(column) for column in rows.T])


@pytest.mark.parametrize(("num", "fraction", "cut"), [(5, 0.2, 1), (7, 0.2, 2), (15, 0.2, 3), (4, 0.0, 0), (9, 0.4, 4)])
def test_trimmed_mean_leaves_out_the_ends(num, fraction, cut):
    rows = matrix(num)
    expected = [np.mean(sorted(column)[cut : num - cut]) for column in rows.T]
    np.testing.assert_allclose(apply(trimmed_mean(fraction), rows), expected)


@pytest.mark.parametrize(("num", "f"), [(5, 1), (9, 3), (6, 0)])
def test_krum_takes_the_update_with_the_nearest_neighbours(num, f):
    rows = matrix(num)
    np.testing.assert_array_equal(apply(krum(f), rows), rows[int(np.argmin(krum_loop(rows, f)))])


def test_krum_by_hand():
    """At 0, 1, 2.5 and 9 with f = 0, so 2 neighbours: scores 7.25, 3.25, 8.5 and 114.25. The second wins."""
    assert apply(krum(0), [[0.0], [1.0], [2.5], [9.0]]).tolist() == [1.0]


@pytest.mark.parametrize(("num", "f", "selected"), [(7, 2, None), (7, 2, 5), (8, 1, 1)])
def test_multi_krum_averages_the_best(num, f, selected):
    rows = matrix(num)
    best = np.argsort(krum_loop(rows, f), kind="stable")[: selected or num - f - 2]
    np.testing.assert_allclose(apply(multi_krum(f, selected), rows), rows[best].mean(0))


@pytest.mark.parametrize(("num", "f"), [(7, 1), (12, 2), (5, 0)])
def test_bulyan_is_krum_again_and_again_then_means_near_the_median(num, f):
    rows = matrix(num)
    left, chosen = list(range(num)), []
    while len(chosen) < num - 2 * f:
        scores = krum_loop(rows[left], f, max(1, len(left) - f - 2))
        chosen.append(left.pop(int(np.argmin(scores))))
    expected = []
    for column in rows[chosen].T:
        middle = statistics.median(column)
        expected.append(np.mean(sorted(column, key=lambda v: abs(v - middle))[: len(chosen) - 2 * f]))
    np.testing.assert_allclose(apply(bulyan(f), rows), expected)


def test_geometric_median_is_the_papers_recurrence():
    rows, weights = matrix(6), [1.0, 2.0, 3.0, 1.0, 5.0, 2.0]
    centre = np.average(rows, axis=0, weights=weights)
    for _ in range(3):
        beta = [w / max(1e-6, distance(row, centre) ** 0.5) for w, row in zip(weights, rows, strict=True)]
        centre = np.average(rows, axis=0, weights=beta)
    np.testing.assert_allclose(apply(geometric_median(3), rows, weights), centre)


def test_geometric_median_goes_to_the_known_point():
    """The Fermat point of an equilateral triangle is its centre; a heavy point draws the median onto itself."""
    triangle = [[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]]
    start_elsewhere = apply(geometric_median(200), triangle, [1.0, 1.0, 1.0])
    np.testing.assert_allclose(start_elsewhere, [0.5, 3**0.5 / 6], atol=1e-9)
    np.testing.assert_allclose(apply(geometric_median(200), triangle, [1.0, 5.0, 1.0]), [1.0, 0.0], atol=1e-4)


def test_norm_bounding_scales_the_longer_ones_down():
    rows, weights = np.diag([1.0, 2.0, 8.0]), [1.0, 2.0, 1.0]
    np.testing.assert_allclose(apply(norm_bounding(4.0), rows, weights), [0.25, 1.0, 1.0])
    np.testing.assert_allclose(apply(norm_bounding(), rows, weights), [0.25, 1.0, 0.5])  # the median norm is 2


RULES = {
    "median": median(),
    "trimmed_mean": trimmed_mean(0.2),
    "krum": krum(2),
    "multi_krum": multi_krum(2),
    "bulyan": bulyan(2),
    "geometric_median": geometric_median(10),
    "norm_bounding": norm_bounding(),
}


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_the_order_of_arrival_changes_no_bit(name, seed, data):
    rows = matrix(12, seed=seed)
    order = data.draw(st.permutations(range(12)))
    np.testing.assert_array_equal(apply(RULES[name], rows), apply(RULES[name], rows, order=order))


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5, allow_subnormal=False))  # other tests flush them to zero
def test_rules_move_with_their_updates(name, seed, shift):
    """Translation (but for norm bounding, whose bound is about 0) and scaling."""
    rows = matrix(12, seed=seed)
    plain = apply(RULES[name], rows)
    if name != "norm_bounding":
        np.testing.assert_allclose(apply(RULES[name], rows + shift), plain + shift, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(apply(RULES[name], 4.0 * rows), 4.0 * plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in RULES if name != "norm_bounding"])
@pytest.mark.parametrize("attack", ["far away", "one coordinate", "all alike"])
def test_two_attackers_of_twelve_move_no_rule_far(name, attack):
    """Honest updates are within 4 of 0 in each coordinate, the attackers 1e6 away. The mean ends beyond 1e5."""
    rows = matrix(12, seed=3)
    bad = np.full((2, 5), 1e6) if attack != "one coordinate" else np.array([[1e6, 0, 0, 0, 0]] * 2)
    if attack == "far away":
        bad[1] *= -3
    rows[[2, 9]] = bad
    assert np.abs(rows.mean(0)).max() > 1e5
    assert np.abs(apply(RULES[name], rows)).max() < 4


def test_norm_bounding_lets_an_attacker_have_one_share_and_no_more():
    rows = matrix(12, seed=3)
    rows[2] = 1e6
    bound = np.median(np.linalg.norm(rows, axis=1))
    moved = apply(norm_bounding(), rows) - apply(norm_bounding(), np.delete(rows, 2, 0)) * 11 / 12
    assert np.linalg.norm(moved) < 2 * bound / 12 + 0.2


def test_trimming_holds_for_as_many_attackers_as_it_trims_and_breaks_at_one_more():
    honest = matrix(10, seed=5)
    for attackers, holds in ((2, True), (3, False)):
        rows = honest.copy()
        rows[:attackers] = 1e6
        assert bool(np.abs(apply(trimmed_mean(0.2), rows)).max() < 4) is holds


def test_the_median_holds_until_half_are_attackers():
    honest = matrix(9, seed=5)
    for attackers, holds in ((4, True), (5, False)):
        rows = honest.copy()
        rows[:attackers] = 1e6
        assert bool(np.abs(apply(median(), rows)).max() < 4) is holds


def test_blocks_change_nothing(monkeypatch):
    rows = matrix(12, size=40)
    whole = {name: apply(rule, rows) for name, rule in RULES.items()}
    monkeypatch.setattr(store_module, "_BLOCK", 12 * 8 * 7)  # 7 columns at once
    for name, rule in RULES.items():
        np.testing.assert_allclose(apply(rule, rows), whole[name], rtol=1e-12, err_msg=name)


def test_the_mean_keeps_nothing():
    assert mean().rule is None


@pytest.mark.parametrize(
    ("aggregator", "num", "message"),
    [
        (bulyan(2), 10, r"aggregator=bulyan with num_attackers=2 needs at least 4 f \+ 3 = 11 updates a round, got 10"),
        (krum(1), 4, r"needs at least 2 f \+ 3 = 5 updates a round, got 4: raise server.clients_per_round"),
        (multi_krum(3), 8, r"2 f \+ 3 = 9"),
        (multi_krum(1, num_selected=9), 8, "num_selected=9, but a round has 8 updates"),
        (trimmed_mean(0.45), 2, "leaves nothing of 2 updates"),
    ],
)
def test_too_few_updates_are_refused(aggregator, num, message):
    with pytest.raises(ValueError, match=message):
        aggregator.require(num)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trimmed_mean(0.5), r"trim_fraction must be in \[0, 0.5\)"),
        (lambda: krum(-1), "num_attackers must not be negative"),
        (lambda: multi_krum(1, 0), "num_selected must be at least 1"),
        (lambda: geometric_median(0), "num_iterations must be at least 1"),
        (lambda: geometric_median(smoothing=0.0), "smoothing must be positive"),
        (lambda: norm_bounding(0.0), "max_norm must be positive"),
        (lambda: median(memory_mib=-1), "memory_mib must not be negative"),
        (lambda: median(spill_dir="/nowhere/at/all"), "is not a folder"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_distances_of_all_pairs_by_hand():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    store = UpdateStore(range(3), 2)
    store.put([0, 1, 2], rows, [1.0] * 3)
    found = store.squared_distances()
    for (i, j), expected in zip(itertools.combinations(range(3), 2), [25.0, 1.0, 18.0], strict=True):
        assert found[i, j].item() == pytest.approx(expected)
