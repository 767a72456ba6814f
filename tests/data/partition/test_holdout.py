"""Holdout: exact counts, every class in its proportion if stratified, a uniform draw if not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.partition import Dirichlet, Holdout, Iid, Natural
from fedsim.data.partition.holdout import hold_out


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.sampled_from([(0.0, 0.2), (0.1, 0.1), (0.5, 0.0), (0.3, 0.6)]),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_counts_are_exact_and_classes_in_proportion(sizes, fractions, stratified, seed):
    offsets = np.append(0, np.cumsum(sizes))
    rng = np.random.default_rng(seed)
    order, targets = rng.permutation(offsets[-1] + 5)[: offsets[-1]], rng.integers(0, 4, offsets[-1] + 5)
    holdout = Holdout(validation_fraction=fractions[0], test_fraction=fractions[1], stratified=stratified)
    new, held = hold_out(offsets, order, targets, holdout, seed)
    np.testing.assert_array_equal(hold_out(offsets, order, targets, holdout, seed)[0], new)
    for client, size in enumerate(sizes):
        before, after = (o[offsets[client] : offsets[client + 1]] for o in (order, new))
        assert sorted(before) == sorted(after)
        num_validation, num_test = held[client]
        # the rule, in words of its own: half samples are rounded up; one sample stays for training
        assert num_test == min(int(np.floor(fractions[1] * size + 0.5)), max(size - 1, 0))
        assert num_validation == min(int(np.floor(fractions[0] * size + 0.5)), max(size - 1 - num_test, 0))
        cuts = [size - num_validation - num_test, size - num_test]
        parts = np.split(after, cuts)
        for part in parts:  # each part keeps the order that the deal had
            places = [before.tolist().index(row) for row in part]
            assert places == sorted(places)
        if stratified and size:
            for label in range(4):
                whole = (targets[before] == label).sum()
                tested = (targets[parts[2]] == label).sum()
                assert abs(tested - whole * num_test / size) < 1
                left = size - num_test
                validated = (targets[parts[1]] == label).sum()
                assert not left or abs(validated - (whole - tested) * num_validation / left) < 1


@pytest.mark.parametrize("stratified", [False, True])
def test_every_sample_is_as_likely_to_be_held_out(stratified):
    # one client of 12 samples in classes of 6, 3, 2 and 1: of 3,000 draws of 3, each sample is in a quarter
    targets = np.repeat([0, 1, 2, 3], [6, 3, 2, 1])
    holdout = Holdout(test_fraction=0.25, stratified=stratified)
    counts = np.zeros(12)
    for seed in range(3000):
        order, held = hold_out(np.array([0, 12]), np.arange(12), targets, holdout, seed)
        assert held.tolist() == [[0, 3]]
        counts[order[-3:]] += 1
    # deviation sqrt(3000 * 3/16) = 24; five of them
    assert np.abs(counts - 750).max() < 120


@pytest.fixture
def dataset() -> FederatedDataset:
    train = Split(inputs=torch.arange(300.0).view(-1, 1), targets=torch.arange(300) % 3)
    test = Split(inputs=torch.zeros(10, 1), targets=torch.zeros(10, dtype=torch.int64))
    return FederatedDataset(name="toy", train=train, test=test, num_classes=3)


def test_validation_leaves_the_central_test_set_and_test_replaces_it(dataset):
    validated = Dirichlet(num_clients=4, holdout=Holdout(validation_fraction=0.2))(dataset, 0)
    assert validated.validation is not None
    assert validated.validation.owned
    assert validated.test is not None
    assert not validated.test.owned
    assert validated.notes == ()
    assert validated.validation.inputs is dataset.train.inputs  # no copy
    tested = Dirichlet(num_clients=4, holdout=Holdout(test_fraction=0.2))(dataset, 0)
    assert tested.test is not None
    assert tested.test.sizes.sum() == pytest.approx(60, abs=2)
    assert tested.validation is None
    assert "10 central test samples are not used: partition.holdout.test_fraction" in tested.notes[0]
    # training is on the same clients, less what was held out
    plain = Dirichlet(num_clients=4)(dataset, 0)
    assert set(tested.train.rows(2)) | set(tested.test.rows(2)) == set(plain.train.rows(2))
    both = Dirichlet(num_clients=4, holdout=Holdout(validation_fraction=0.2, test_fraction=0.2))(dataset, 0)
    assert both.validation is not None
    assert both.test is not None
    parts = np.concatenate([split.rows(2) for split in (both.train, both.validation, both.test)])
    assert sorted(parts) == sorted(plain.train.rows(2)), "a sample is in two splits"


def test_natural_clients_with_test_samples_are_not_asked_for_more():
    split = Split(inputs=torch.zeros(20, 1), targets=torch.zeros(20, dtype=torch.int64), offsets=np.array([0, 10, 20]))
    both = FederatedDataset(name="toy", train=split, test=split, client_ids=["a", "b"], num_classes=2)
    with pytest.raises(ValueError, match=r"data=toy have test samples already: set partition.holdout.test_fraction=0"):
        Natural(holdout=Holdout(test_fraction=0.1))(both, 0)
    kept = Natural(holdout=Holdout(validation_fraction=0.2))(both, 0)
    assert kept.client_ids == ["a", "b"]
    assert kept.train.sizes.tolist() == [8, 8]
    assert kept.validation is not None
    assert kept.validation.sizes.tolist() == [2, 2]
    assert kept.test is not None
    assert kept.test.sizes.tolist() == [10, 10]


def test_stratified_needs_labels(dataset):
    floats = FederatedDataset(name="toy", train=Split(inputs=torch.zeros(9, 1), targets=torch.zeros(9)), num_classes=1)
    with pytest.raises(ValueError, match=r"partition.holdout.stratified needs one integer class label a sample"):
        Iid(num_clients=2, holdout=Holdout(test_fraction=0.3, stratified=True))(floats, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 1.0}, r"partition.holdout.test_fraction must be in \[0, 1\), got 1.0"),
        ({"validation_fraction": "0.1"}, r"partition.holdout.validation_fraction must be in \[0, 1\), got '0.1'"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leaves nothing to train on"),
        ({"stratified": True}, "partition.holdout.stratified has no effect"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Holdout(**options)
