"""Attacks: the chosen clients' data or updates, and nobody else's."""

import dataclasses

import numpy as np
import pytest
import torch

from fedsim.attacks import (
    backdoor,
    gaussian_attack,
    label_flip,
    little_is_enough,
    patched,
    sign_flip,
    supporters_z,
    triggered,
)
from fedsim.data.federated import Split
from fedsim.robust.store import UpdateStore
from fedsim.transforms import Sending


def corrupt(attack, rows, clients, round=1):
    sending = Sending(seed=0, round=round, purpose="attack", clients=clients, state={}, memory=None)
    return attack.corrupt(rows.clone(), sending)


def test_attackers_are_a_share_drawn_by_the_seed_or_those_that_were_named():
    attack = sign_flip(fraction=0.2)
    assert len(attack.attackers(50, 1)) == 10
    assert np.array_equal(attack.attackers(50, 1), attack.attackers(50, 1))
    assert not np.array_equal(attack.attackers(50, 1), attack.attackers(50, 2))
    assert sign_flip(clients=[4, 2]).attackers(5, 0).tolist() == [2, 4]
    with pytest.raises(ValueError, match="clients are 0 to 4"):
        sign_flip(clients=[5]).attackers(5, 0)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]"):
        sign_flip(fraction=1.1)


def test_sign_flip_and_gaussian():
    rows = torch.tensor([[1.0, -2.0]])
    assert corrupt(sign_flip(scale=3.0), rows, [0]).tolist() == [[-3.0, 6.0]]
    noise = corrupt(gaussian_attack(deviation=2.0), torch.zeros(2, 100_000), [3, 8])
    assert noise.std(1).tolist() == pytest.approx([2.0, 2.0], rel=0.02)
    alone = corrupt(gaussian_attack(deviation=2.0), torch.zeros(1, 100_000), [8])
    assert torch.equal(alone[0], noise[1]), "a client's noise is its own"


def test_a_little_is_enough_hides_behind_the_deviation():
    """n = 50, f = 24: s = 26 - 24 = 2 supporters of 26 honest clients, so z_max = Phi^-1(24 / 26) = 1.4261."""
    assert supporters_z(50, 24) == pytest.approx(1.4261, abs=1e-4)
    assert supporters_z(10, 1) == 0.0, "Phi^-1(4 / 9) is negative: so few cannot move a majority"
    assert supporters_z(10, 6) == 0.0, "a majority needs nobody"
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    store = UpdateStore(range(5), 7)
    store.put(range(5), rows, [1.0] * 5)
    expected = rows.double().mean(0) - 1.5 * rows.double().std(0, correction=0)
    torch.testing.assert_close(little_is_enough(z=1.5).collude(store, 20), expected)


def test_label_flip_turns_the_labels_of_its_clients_round(make_dataset):
    dataset = make_dataset([5, 6, 7])
    found = label_flip().poison(dataset, np.array([1]))
    before, after = dataset.train.targets, found.train.targets
    assert torch.equal(after[5:11], 3 - before[5:11])
    assert torch.equal(after[:5], before[:5])
    assert torch.equal(after[11:], before[11:])
    assert found.fingerprint() != dataset.fingerprint(), "a checkpoint of an honest run is another run's"


def test_a_backdoor_teaches_the_patch(make_dataset):
    dataset = make_dataset([4, 6, 5], shape=(1, 8, 8))
    attack = backdoor(target=2, poisoned_share=0.5, scale=5.0)
    found = attack.poison(dataset, np.array([1]))
    changed = (found.train.inputs != dataset.train.inputs).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [4, 5, 6], "half of the six samples of client 1"
    assert (found.train.inputs[4:7, :, 5:, 5:] == 1.0).all()
    assert torch.equal(found.train.inputs[4:7, :, :5], dataset.train.inputs[4:7, :, :5])
    assert (found.train.targets[4:7] == 2).all()
    assert corrupt(attack, torch.ones(1, 2), [1]).tolist() == [[5.0, 5.0]]

    test = triggered(dataset.test, target=2)
    assert len(test.inputs) == int((dataset.test.targets != 2).sum())
    assert (test.targets == 2).all()
    assert (test.inputs[:, :, 5:, 5:] == 1.0).all()


def test_a_patch_of_bytes_is_white():
    assert patched(torch.zeros(1, 3, 5, 5, dtype=torch.uint8), 2)[0, :, 3:, 3:].unique().tolist() == [255]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: backdoor(target=9).poison(d, np.array([0])), "target must be 0 to 3, got 9"),
        (lambda d: backdoor().poison(d, np.array([0])), "needs images of at least 3 x 3"),
        (lambda d: backdoor(poisoned_share=0.0), r"poisoned_share must be in \(0, 1\]"),
    ],
)
def test_attacks_that_cannot_be_are_refused(make_dataset, make, message):
    with pytest.raises(ValueError, match=message):
        make(make_dataset([3, 3]))


def test_shared_samples_are_not_poisoned(make_dataset):
    dataset = make_dataset([3, 3])
    shared = Split(
        inputs=dataset.train.inputs,
        targets=dataset.train.targets,
        offsets=np.array([0, 3, 6]),
        order=np.array([0, 1, 2, 2, 3, 4]),
    )
    with pytest.raises(ValueError, match="attackers share samples with other clients"):
        label_flip().poison(dataclasses.replace(dataset, train=shared), np.array([0]))
