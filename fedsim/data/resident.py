"""Samples where the device can gather them: on the device when they fit, else on the host."""

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federated import FederatedDataset, Split


class ResidentSplit:
    """Gathers minibatches of a split on a device.

    On a CPU the samples stay as they are (in memory or memory-mapped). On a GPU they are copied there once if they
    take at most half of its free memory; else each gather reads the host's rows and uploads them.
    """

    def __init__(self, dataset: FederatedDataset, split: Split, device: torch.device) -> None:
        self.preprocess, self.device = dataset.preprocess, device
        self.inputs, self.targets = split.inputs, split.targets
        if device.type == "cuda":
            size = self.inputs.nbytes + self.targets.nbytes
            if size <= torch.cuda.mem_get_info(device)[0] // 2:
                self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)

    def rows(self, rows: np.ndarray) -> Tensor:
        """Row numbers as a tensor where `gather` wants them: on the device if the samples are there."""
        return torch.from_numpy(rows).to(self.inputs.device)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) rows to preprocessed inputs (n, ...) and targets (n, ...) on the device."""
        inputs, targets = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
        if inputs.device != self.device:
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
            targets = targets.pin_memory().to(self.device, non_blocking=True)
        return self.preprocess(inputs), targets
