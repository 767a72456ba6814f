"""UpdateStore: all updates of a round as a matrix that is read in blocks, in RAM up to a budget and in a file beyond.

The file is written and read by position, not mapped: on a full disk a write is an error that can be told, where a
store to a mapped page kills the process, and pages of a map would count as the process's memory. The file has no
name, so that it is gone with the process, however that ends.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

# Bytes of updates in work at once. A rule makes a few copies of a block (sorted, in float64).
_BLOCK = 1 << 25


class UpdateStore:
    """(m, S) updates, one a row, in the order of `clients` whatever the order of their arrival.

    Args:
        clients: (m,) who will send an update; sorted here, so that no rule depends on the order of the cohort.
        size: S.
        dtype: of the updates.
        device: where blocks are given out.
        memory_bytes: RAM for the updates; as many whole rows as fit stay there.
        directory: of the file for the others; None: the system's folder for temporary files.

    Attributes:
        weights: (m,) float64 weights of the updates.
    """

    def __init__(
        self,
        clients: Sequence[int] | np.ndarray,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_bytes: float = 1 << 30,
        directory: str | None = None,
    ) -> None:
        self.clients = sorted(int(c) for c in clients)
        self.place = {client: i for i, client in enumerate(self.clients)}
        self.size, self.dtype, self.device, self.directory = size, dtype, torch.device(device), directory
        self.row_bytes = size * dtype.itemsize
        self.weights = torch.zeros(len(self), dtype=torch.float64)
        kept = min(len(self), int(memory_bytes // self.row_bytes))
        self.memory = torch.empty((kept, size), dtype=dtype)  # rows 0 ... kept - 1
        self.file = None
        if kept < len(self):
            self.file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (lives as long as the store)
            weakref.finalize(self, self.file.close)

    def __len__(self) -> int:
        """m."""
        return len(self.clients)

    @property
    def file_bytes(self) -> int:
        """Bytes in the file."""
        return 0 if self.file is None else os.fstat(self.file.fileno()).st_size

    def put(self, clients: Sequence[int], rows: Tensor, weights: Sequence[float]) -> None:
        """Keep the updates (F, S) of these clients.

        Raises:
            OSError: the disk is full.
        """
        for client, row, weight in zip(clients, rows, weights, strict=True):
            i = self.place[int(client)]
            self.weights[i] = weight
            if i < len(self.memory):
                self.memory[i] = row
            else:
                self._write((i - len(self.memory)) * self.row_bytes, row.cpu().contiguous())

    def _write(self, offset: int, row: Tensor) -> None:
        assert self.file is not None
        view = _bytes(row)
        try:
            while view:
                done = os.pwrite(self.file.fileno(), view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            where = self.directory or tempfile.gettempdir()
            raise OSError(
                f"cannot keep {len(self)} updates of {self.row_bytes:,} bytes in {where} ({error}); set "
                "aggregator.spill_dir to a folder with room, raise aggregator.memory_mib, or sample fewer clients"
            ) from error

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """The matrix in blocks of columns: (which columns, (m, c) on the device), each valid until the next."""
        width = max(1, _BLOCK // max(1, len(self) * self.dtype.itemsize))
        buffer = torch.empty((len(self), min(width, self.size)), dtype=self.dtype)
        for start in range(0, self.size, width):
            stop = min(start + width, self.size)
            block = buffer.view(-1)[: len(self) * (stop - start)].view(len(self), stop - start)
            block[: len(self.memory)] = self.memory[:, start:stop]
            for i in range(len(self.memory), len(self)):
                self._read((i - len(self.memory)) * self.row_bytes + start * self.dtype.itemsize, block[i])
            yield slice(start, stop), block.to(self.device)

    def _read(self, offset: int, into: Tensor) -> None:
        assert self.file is not None
        view = _bytes(into)
        while view:
            done = os.preadv(self.file.fileno(), [view], offset)
            assert done, "an update that was promised has not arrived"
            view, offset = view[done:], offset + done

    def map_columns(self, reduce_block: Callable[[Tensor], Tensor]) -> Tensor:
        """(S,) float64 on the device: `reduce_block`, from (m, c) to (c,), over all blocks."""
        result = torch.empty(self.size, dtype=torch.float64, device=self.device)
        for part, block in self.columns():
            result[part] = reduce_block(block).double()
        return result

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """(S,) float64: sum over rows of weights (m,) times row."""
        weights = weights.to(self.device, torch.float64)
        return self.map_columns(lambda block: weights @ block.double())

    def squared_norms(self, centre: Tensor | None = None) -> Tensor:
        """(m,) float64 squared Euclidean norms of the rows, or of their differences from `centre` (S,)."""
        total = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        for part, block in self.columns():
            difference = block.double() if centre is None else block.double() - centre[part]
            total += difference.square().sum(1)
        return total

    def squared_distances(self) -> Tensor:
        """(m, m) float64 squared Euclidean distances between rows.

        From products of rows less their mean, which keeps the digits where updates are alike.
        """
        gram = torch.zeros((len(self), len(self)), dtype=torch.float64, device=self.device)
        for _, block in self.columns():
            centred = block.double()
            centred -= centred.mean(0)
            gram += centred @ centred.T
        norms = gram.diagonal()
        return (norms[:, None] + norms[None, :] - 2 * gram).clamp_(min=0.0).fill_diagonal_(0.0)


def _bytes(row: Tensor) -> memoryview:
    """The memory of a contiguous CPU row."""
    return memoryview(row.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
