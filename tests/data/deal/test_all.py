"""Every deal of a first handful: disjoint, complete, seed-stable; shards by their rule; a hundred thousand clients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.deal import dirichlet, iid, shards
from fedsim.data.partition import Partition
from fedsim.rng import stream

DEALS = {"iid": iid, "dirichlet": dirichlet, "shards": shards}


@st.composite
def problems(draw):
    """Targets with classes of any sizes (some empty), and a number of clients that is feasible."""
    targets = np.array(draw(st.lists(st.integers(0, 6), min_size=1, max_size=120)))
    return targets, draw(st.integers(1, len(targets))), draw(st.integers(0, 2**32))


@given(
    problems(),
    st.sampled_from(sorted(DEALS)),
    st.sampled_from([1e-320, 1e-3, 0.1, 1.0, 100.0, 1e308]),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_deals_are_disjoint_complete_and_seed_stable(problem, name, alpha, data):
    targets, num_clients, seed = problem
    each = len(targets) // num_clients
    options = {
        "iid": {},
        "dirichlet": {"alpha": alpha, "min_samples": data.draw(st.integers(1, each))},
        "shards": {"shards_per_client": data.draw(st.integers(1, each))},
    }[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.data.deal.class_shares._MAX_TRIES", 20)  # reaches the repair in a fiftieth of the time
        deal = DEALS[name](targets, num_clients, stream(seed, "partition"), **options)
        again = DEALS[name](targets, num_clients, stream(seed, "partition"), **options)

    assert deal.offsets.shape == (num_clients + 1,)
    assert deal.offsets[0] == 0
    assert deal.offsets[-1] == len(targets)
    assert (np.diff(deal.offsets) >= options.get("min_samples", 1)).all()
    np.testing.assert_array_equal(np.sort(deal.order), np.arange(len(targets)))
    assert deal.offsets.dtype == deal.order.dtype == np.int64
    np.testing.assert_array_equal(deal.offsets, again.offsets)
    np.testing.assert_array_equal(deal.order, again.order)
    if name == "iid":
        assert np.ptp(np.diff(deal.offsets)) <= 1
    if name == "shards":  # sizes of shards differ by at most one
        assert np.ptp(np.diff(deal.offsets)) <= options["shards_per_client"]


def test_shards_gives_each_client_few_labels_and_drops_nothing():
    # 150 shards of 50,000 samples, where FedLab keeps 33,300 of them
    targets = np.random.default_rng(0).integers(0, 10, 50_000)
    deal = shards(targets, 75, stream(0, "partition"), shards_per_client=2)
    assert len(deal.order) == 50_000
    frame = Partition(offsets=deal.offsets, order=deal.order, num_samples=50_000, recipe={}).frame(targets, 10)
    labels_held = (frame.filter(like="class_") > 0).sum(axis=1)
    assert labels_held.max() <= 4  # a shard of a tenth of a class crosses at most one border


def test_shards_sorts_stably():
    targets = np.array([1, 0, 1, 0, 1, 0])
    assert shards(targets, 1, stream(0, "partition"), shards_per_client=1).order.tolist() == [
        1,
        3,
        5,
        0,
        2,
        4,
    ]


def test_a_hundred_thousand_clients():
    targets = np.random.default_rng(0).integers(0, 10, 400_000)
    for deal in (
        iid(targets, 100_000, stream(0, "partition")),
        shards(targets, 100_000, stream(0, "partition")),
        dirichlet(targets, 100_000, stream(0, "partition"), alpha=0.5, min_samples=2),
    ):
        partition = Partition(offsets=deal.offsets, order=deal.order, num_samples=400_000, recipe={})
        assert partition.num_dropped == 0
        assert partition.sizes.min() >= 2
        assert partition.frame(targets, 10).shape == (100_000, 12)


def test_negative_labels_are_refused():
    with pytest.raises(ValueError, match="class labels from 0 on, but the targets have -1"):
        shards(np.array([0, -1]), 1, stream(0, "partition"))
