"""A dataset in which rows can be told apart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split


def _toy(num_samples=600, num_classes=5, owners=None, test_owners=None, order=None) -> FederatedDataset:
    """Inputs are the rows' own numbers; labels run 0, 1, ... in turn; `owners` are offsets."""

    def split(count, offsets, order=None):
        inputs = torch.arange(count, dtype=torch.float32).reshape(-1, 1)
        offsets = None if offsets is None else np.array(offsets)
        return Split(inputs=inputs, targets=torch.arange(count) % num_classes, offsets=offsets, order=order)

    ids = () if owners is None else [f"writer{c}" for c in range(len(owners) - 1)]
    test = split(40, test_owners)
    train = split(num_samples, owners, order)
    return FederatedDataset(name="toy", train=train, test=test, client_ids=ids, num_classes=num_classes)


@pytest.fixture
def make_toy() -> Callable[..., FederatedDataset]:
    return _toy
