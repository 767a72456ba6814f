"""Continuous: from iid to sorted. Octants: NIID-Bench's table."""

import numpy as np
import pytest

from fedsim.data.deal import continuous, octants
from fedsim.rng import stream


def means(scores, strictness):
    deal = continuous(scores, 10, stream(0, "x"), strictness=strictness)
    assert sorted(deal.order) == list(range(len(scores)))
    return np.array([scores[deal.order[a:b]].mean() for a, b in zip(deal.offsets[:-1], deal.offsets[1:], strict=True)])


def test_continuous_goes_from_iid_to_sorted():
    scores = np.random.default_rng(0).normal(50, 10, 5000)
    sorted_means = [part.mean() for part in np.array_split(np.sort(scores), 10)]
    np.testing.assert_allclose(means(scores, 1.0), sorted_means)
    assert np.ptp(means(scores, 0.0)) < 4  # each mean has a deviation of 10 / sqrt(500) = 0.45
    spread = [np.ptp(means(scores, s)) for s in (0.0, 0.3, 0.6, 1.0)]
    assert spread == sorted(spread)
    # at 1/2 a score and noise of equal variance are added: the means of deciles shrink by sqrt(1/2)
    np.testing.assert_allclose(np.ptp(means(scores, 0.5)), np.sqrt(0.5) * np.ptp(sorted_means), rtol=0.05)


def test_equal_scores_are_dealt_at_random():
    deal = continuous(np.ones(100), 2, stream(0, "x"), strictness=1.0)
    assert 10 < (deal.order[:50] < 50).sum() < 40


def test_scores_must_be_finite():
    with pytest.raises(ValueError, match="partition=continuous needs finite scores, but sample 1 has nan"):
        continuous(np.array([0.0, np.nan]), 1, stream(0, "x"))


OCTANTS = {0: "+++ ---", 1: "++- --+", 2: "+-+ -+-", 3: "+-- -++"}


@pytest.mark.parametrize("num_clients", [4, 12])
def test_octants_are_those_of_niid_bench(num_clients):
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    deal = octants(points, num_clients, stream(0, "x"))
    assert sorted(deal.order) == list(range(4000))
    for client in range(num_clients):
        mine = points[deal.order[deal.offsets[client] : deal.offsets[client + 1]]]
        signs = {"".join("+" if x > 0 else "-" for x in point) for point in mine}
        assert signs == set(OCTANTS[client % 4].split())
    sizes = np.diff(deal.offsets)
    assert all(np.ptp(sizes[pair::4]) <= 1 for pair in range(4))


def test_zero_counts_as_negative_and_clients_share_octants_at_random():
    signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]])
    deal = octants(np.concatenate([signs, [[0, 1, 1]]]), 4, stream(0, "x"))
    assert sorted(deal.order[deal.offsets[3] :]) == [3, 4]  # {+--, -++}
    shared = octants(np.tile(signs, (100, 1)), 8, stream(0, "x"))
    # client 0 has half of the 100 points of its octants: of the first half about 25, with a deviation of 2.5
    assert 12 < (shared.order[: shared.offsets[1]] < 200).sum() < 38


@pytest.mark.parametrize(
    ("points", "num_clients", "message"),
    [
        (np.ones((8, 2)), 4, r"needs three numbers a sample, but one sample has shape \(2,\)"),
        (np.full((8, 3), np.inf), 4, "needs finite inputs"),
        (np.ones((8, 3)), 6, "must be a multiple of 4 for partition=fcube, got 6"),
        (np.ones((8, 3)), 4, "finds no point in pair of octants 1: are the points around the origin"),
        (np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]]), 8, "set partition.num_clients to at most 4"),
    ],
)
def test_octants_refuse_what_has_none(points, num_clients, message):
    with pytest.raises(ValueError, match=message):
        octants(points, num_clients, stream(0, "x"))
