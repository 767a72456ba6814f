"""What `Continuous` may sort by: functions of a dataset and (M,) rows of its training split, to (M,) finite numbers."""

import numpy as np
import torch

from fedsim.data.federated import FederatedDataset

_CHUNK = 8192  # samples made float64 at once


def mean_input(dataset: FederatedDataset, rows: np.ndarray) -> np.ndarray:
    """(M,) float64: the mean of each sample's stored numbers; of a grey picture its brightness, from 0 to 255."""
    sums = np.zeros(len(rows))
    size = dataset.train.inputs[:1].numel()
    for start in range(0, len(rows), _CHUNK):
        chosen = dataset.train.inputs[torch.from_numpy(rows[start : start + _CHUNK])].reshape(-1, size)
        # Number after number: PyTorch's own sum takes them in an order that depends on the processor.
        np.add.reduce(chosen.T.contiguous().double().numpy(), axis=0, out=sums[start : start + _CHUNK])
    return sums / size


def target(dataset: FederatedDataset, rows: np.ndarray) -> np.ndarray:
    """(M,) float64: the targets themselves, for regression, or for classes that have an order.

    Raises:
        ValueError: a sample has more than one target.
    """
    targets = dataset.train.targets.numpy()
    if targets.ndim != 1:
        raise ValueError(
            f"partition.score=target needs one target a sample, but data={dataset.name} has targets of shape "
            f"{targets.shape[1:]}: choose another score"
        )
    return targets[rows].astype(np.float64)
