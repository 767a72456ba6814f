"""FederatedDataset: what its parts must be."""

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split

PARTS = {"inputs": torch.randn(4, 3), "targets": torch.tensor([0, 1, 1, 0]), "offsets": np.array([0, 1, 4])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": np.zeros((4, 3))}, "mine: the inputs of a Split are a tensor, not ndarray: torch.from_numpy"),
        ({"targets": np.zeros(4, int)}, "mine: the targets of a Split are a tensor, not ndarray"),
        ({"offsets": [0, 1, 4]}, "mine: the offsets of a Split are a NumPy array, not list"),
        ({"order": [3, 2, 1, 0]}, "mine: the order of a Split are a NumPy array, not list"),
    ],
)
@pytest.mark.parametrize("where", ["train", "test"])
def test_parts_of_another_kind_are_refused(changes, message, where):
    parts = {"train": Split(**PARTS), where: Split(**(PARTS | changes))}
    with pytest.raises(ValueError, match=message):
        FederatedDataset(name="mine", **parts, client_ids=["a", "b"], num_classes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, "4 inputs but 2 targets: give one target a sample"),
        ({"offsets": np.array([0, 3, 1])}, "client offsets must rise from 0 to at most 4"),
    ],
)
def test_splits_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Split(**(PARTS | changes))


def test_every_client_has_a_name():
    with pytest.raises(ValueError, match="2 clients but 1 client_ids: give each a name"):
        FederatedDataset(name="mine", train=Split(**PARTS), client_ids=["a"], num_classes=2)
