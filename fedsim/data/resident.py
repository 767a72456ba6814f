"""Samples where the device can gather them: on the device when they fit, else on the host, read ahead of their use."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.read_ahead import ReadAhead


class Samples(Protocol):
    """Where minibatches come from."""

    def samples_at_once(self, num_bytes: int) -> int:
        """Samples whose inputs take `num_bytes` in storage; at least one."""
        ...

    def rows(self, rows: np.ndarray) -> Tensor:
        """Row numbers as `gather_all` wants them."""
        ...

    def gather_all(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of rows (n,), from `rows`, to inputs (n, ...) and targets (n, ...), valid until the next part."""
        ...


class ResidentSplit:
    """Gathers minibatches of a split on a device.

    On a CPU the samples stay as they are (in memory or memory-mapped). On a GPU they are copied there once if they
    take at most half of its free memory; else each gather reads the host's rows and uploads them. What the next gather
    will want is read meanwhile, where the caller says it: from the disk on a CPU, into pinned memory for a GPU.
    """

    def __init__(self, dataset: FederatedDataset, split: Split, device: torch.device) -> None:
        self.preprocess, self.device = dataset.preprocess, device
        self.inputs, self.targets = split.inputs, split.targets
        self.buffer = self.inputs.new_empty(0)
        self.upload: Upload | None = None
        self.ahead = ReadAhead(self.inputs)
        self.copy = _copy(split, device) if device.type == "cuda" else None
        if self.copy is not None:
            self.inputs, self.targets = self.copy.inputs, self.copy.targets
        elif device.type == "cuda":
            self.upload = Upload(self.inputs, self.targets, device)

    def samples_at_once(self, num_bytes: int) -> int:
        """Samples whose inputs take `num_bytes` in storage; at least one."""
        return max(1, num_bytes * len(self.inputs) // max(1, self.inputs.nbytes))

    def rows(self, rows: np.ndarray) -> Tensor:
        """Row numbers as a tensor where `gather` wants them: on the device if the samples are there."""
        return torch.from_numpy(rows).to(self.inputs.device)

    def gather_all(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Gathers one part of rows after another, (n,) each and from `rows`, and reads ahead of them.

        Yields:
            Preprocessed inputs (n, ...) and targets (n, ...) on the device, valid until the next part.
        """
        for part, ahead in itertools.pairwise(itertools.chain(parts, [None])):
            assert part is not None
            yield self.gather(part, ahead)

    def gather(self, rows: Tensor, ahead: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n,) rows to preprocessed inputs and targets, as `gather_all` yields them.

        Args:
            rows: from `rows`.
            ahead: (m,) the rows of the next gather, if they are known.
        """
        if self.upload is not None:
            inputs, targets = self.upload.take(rows, ahead)
            return self.preprocess(inputs), targets
        if self.device.type != "cpu":
            return self.preprocess(self.inputs.index_select(0, rows)), self.targets.index_select(0, rows)
        if ahead is not None:
            self.ahead.ask(ahead)
        if self.buffer.shape[0] < len(rows):  # fresh memory for each minibatch would cost its page faults
            self.buffer = self.inputs.new_empty((len(rows), *self.inputs.shape[1:]))
        inputs = torch.index_select(self.inputs, 0, rows, out=self.buffer[: len(rows)])
        return self.preprocess(inputs), self.targets.index_select(0, rows)


@dataclass(eq=False)
class _Copy:
    """The samples of a split on a device."""

    inputs: Tensor
    targets: Tensor


_copies: WeakValueDictionary[tuple[Split, torch.device], _Copy] = WeakValueDictionary()


def _copy(split: Split, device: torch.device) -> _Copy | None:
    """The samples of a split on a GPU: one copy for all who gather them, as long as one of them lives.

    None: they take more than half of its free memory.
    """
    found = _copies.get((split, device))
    if found is None and split.inputs.nbytes + split.targets.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        found = _copies[split, device] = _Copy(split.inputs.to(device), split.targets.to(device))
    return found


@dataclass
class Block:
    """Samples on their way to the device, in memory that the next but one block will use again."""

    inputs: Tensor
    targets: Tensor
    uploaded: torch.cuda.Event | None = None

    def fill(self, inputs: Tensor, targets: Tensor, rows: Tensor, pin: bool) -> tuple[Tensor, Tensor]:
        """The rows of `inputs` and `targets`, gathered here once the former content has been uploaded."""
        if self.uploaded is not None:
            self.uploaded.synchronize()
        if len(self.inputs) < len(rows):
            self.inputs = torch.empty((len(rows), *inputs.shape[1:]), dtype=inputs.dtype, pin_memory=pin)
            self.targets = torch.empty((len(rows), *targets.shape[1:]), dtype=targets.dtype, pin_memory=pin)
        return (
            torch.index_select(inputs, 0, rows, out=self.inputs[: len(rows)]),
            torch.index_select(targets, 0, rows, out=self.targets[: len(rows)]),
        )


class Upload:
    """Uploads rows of the host's samples; those of the next minibatches are gathered by a thread while others train.

    Args:
        inputs, targets: on the host, possibly memory-mapped.
        device: where they go; on a CPU they are copied, for the tests' sake.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, device: torch.device) -> None:
        self.inputs, self.targets, self.device = inputs, targets, device
        self.blocks = [Block(inputs.new_empty(0), targets.new_empty(0)) for _ in range(2)]
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="fedsim-read-ahead")
        self.ready: tuple[Tensor, Future[tuple[Tensor, Tensor]]] | None = None

    def take(self, rows: Tensor, ahead: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of (n,) rows, on the device; see `ResidentSplit.gather`."""
        expected, self.ready = self.ready, None
        if expected is None or not torch.equal(expected[0], rows):
            if expected is not None:
                expected[1].result()  # one gather at a time
            self.blocks.reverse()
            expected = rows, self._read(rows)
        inputs, targets = (part.to(self.device, non_blocking=True, copy=True) for part in expected[1].result())
        if self.device.type == "cuda":
            self.blocks[0].uploaded = torch.cuda.Event()
            self.blocks[0].uploaded.record(torch.cuda.current_stream(self.device))
        if ahead is not None:
            self.blocks.reverse()
            self.ready = ahead, self._read(ahead)
        return inputs, targets

    def _read(self, rows: Tensor) -> Future[tuple[Tensor, Tensor]]:
        block, pin = self.blocks[0], self.device.type == "cuda"
        return self.thread.submit(block.fill, self.inputs, self.targets, rows, pin)
