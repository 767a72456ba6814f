"""Small federated datasets that need no file."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split

# Tiny tensors gain nothing from a second thread, and lose much on a busy machine.
torch.set_num_threads(1)

MakeDataset = Callable[..., FederatedDataset]


@pytest.fixture
def make_dataset() -> MakeDataset:
    """Clients of the given sizes whose classes are Gaussian clouds, with a central test set of 200 samples."""

    def make(
        sizes: list[int] | np.ndarray, *, shape: tuple[int, ...] = (12,), num_classes: int = 4, seed: int = 0
    ) -> FederatedDataset:
        rng = np.random.default_rng(seed)
        total = int(np.sum(sizes))
        targets = rng.integers(0, num_classes, total + 200)
        centres = rng.normal(size=(num_classes, *shape))
        inputs = torch.from_numpy((centres[targets] + rng.normal(size=(total + 200, *shape))).astype(np.float32))
        labels = torch.from_numpy(targets)
        return FederatedDataset(
            name="clouds",
            train=Split(inputs=inputs[:total], targets=labels[:total], offsets=np.concatenate([[0], np.cumsum(sizes)])),
            test=Split(inputs=inputs[total:], targets=labels[total:]),
            client_ids=[f"client_{i}" for i in range(len(sizes))],
            num_classes=num_classes,
        )

    return make
