"""Samples where the device can gather them: on the device when they fit, else on the host."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federated import FederatedDataset, Split


class Samples(Protocol):
    """Where minibatches come from."""

    def samples_at_once(self, num_bytes: int) -> int:
        """Samples whose inputs take `num_bytes` in storage; at least one."""
        ...

    def rows(self, rows: np.ndarray) -> Tensor:
        """Row numbers as `gather` wants them."""
        ...

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) rows to inputs (n, ...) and targets (n, ...), valid until the next gather."""
        ...


class ResidentSplit:
    """Gathers minibatches of a split on a device.

    On a CPU the samples stay as they are (in memory or memory-mapped). On a GPU they are copied there once if they
    take at most half of its free memory; else each gather reads the host's rows and uploads them.
    """

    def __init__(self, dataset: FederatedDataset, split: Split, device: torch.device) -> None:
        self.preprocess, self.device = dataset.preprocess, device
        self.inputs, self.targets = split.inputs, split.targets
        self.buffer = self.inputs.new_empty(0)
        if device.type == "cuda":
            size = self.inputs.nbytes + self.targets.nbytes
            if size <= torch.cuda.mem_get_info(device)[0] // 2:
                self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)

    def samples_at_once(self, num_bytes: int) -> int:
        """Samples whose inputs take `num_bytes` in storage; at least one."""
        return max(1, num_bytes * len(self.inputs) // max(1, self.inputs.nbytes))

    def rows(self, rows: np.ndarray) -> Tensor:
        """Row numbers as a tensor where `gather` wants them: on the device if the samples are there."""
        return torch.from_numpy(rows).to(self.inputs.device)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) rows to preprocessed inputs (n, ...) and targets (n, ...) on the device, valid until the next gather."""
        shape = (len(rows), *self.inputs.shape[1:])
        if self.device.type == "cpu" and self.buffer.shape[0] < len(rows):
            self.buffer = self.inputs.new_empty(shape)  # fresh memory for each minibatch would cost its page faults
        if self.device.type == "cpu":
            inputs = torch.index_select(self.inputs, 0, rows, out=self.buffer[: len(rows)])
            return self.preprocess(inputs), self.targets.index_select(0, rows)
        inputs, targets = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
        if inputs.device != self.device:
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
            targets = targets.pin_memory().to(self.device, non_blocking=True)
        return self.preprocess(inputs), targets
