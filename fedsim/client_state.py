"""ClientVectors: one vector for each client that lasts from round to round, in tiers under a budget of bytes.

A row lies on the GPU, in RAM, or in a file: a row that is written enters the uppermost tier, and the least recently
used ones move down to make room. A client that was never written takes no space anywhere and reads as the initial
row, so the control variates of a hundred thousand clients cost what the sampled ones cost.

A round's rows become lasting together, when it has ended well (`commit`), or not at all (`rollback`). The file is also
where a checkpoint keeps the rows (`fedsim.row_file`): it writes those that changed since the last one and a small
index, never all rows.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.row_file import RESERVE_BYTES, RowFile, existing_folder, readable
from fedsim.row_pool import RowPool

# Rows moved at once between tiers: their copies are all the memory that is used beside the budget.
_CHUNK_BYTES = 1 << 26


class ClientVectors:
    """A persistent vector of `size` elements for each client.

    Not for several threads at once.

    Args:
        size: elements of a row.
        name: of the vector, for the file and for errors.
        dtype: of the rows.
        device: where rows are read to.
        initial: (size,) row of a client that was never written; None: zeros.
        ram_bytes: budget of the rows in RAM (allocated as they fill it).
        device_bytes: budget of the rows on `device`, allocated at the first write; ignored on a CPU.
        directory: where the file NAME.rows is made once it is needed; None: a file without a name in the folder for
            temporary files, which is gone when the process ends.
    """

    def __init__(
        self,
        size: int,
        *,
        name: str = "state",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        initial: Tensor | None = None,
        ram_bytes: int = 1 << 30,
        device_bytes: int = 0,
        directory: Path | None = None,
    ) -> None:
        if initial is not None and initial.shape != (size,):
            raise ValueError(f"client state {name!r}: the initial row must have {size} elements, got {initial.shape}")
        self.size, self.name, self.dtype = size, name, dtype
        self.device, self.directory = torch.device(device), directory
        self.initial = None if initial is None else initial.to(self.device, dtype, copy=True)
        self.row_bytes = size * dtype.itemsize
        self.file: RowFile | None = None
        self.pending: set[int] = set()  # clients with an uncommitted row, which is kept under the key ~client
        self.limit(ram_bytes, device_bytes)

    def limit(self, ram_bytes: int, device_bytes: int = 0) -> None:
        """Set the budgets, before anything is written."""
        budgets = [(torch.device("cpu"), ram_bytes)]
        if self.device.type != "cpu":
            budgets.insert(0, (self.device, device_bytes))
        pools = [RowPool(budget // self.row_bytes, self.size, self.dtype, where) for where, budget in budgets]
        self.pools = [pool for pool in pools if pool.capacity]

    def __len__(self) -> int:
        """Clients that were ever written."""
        return len(self.written)

    @property
    def written(self) -> np.ndarray:
        """(n,) int64: the clients that were ever written, sorted."""
        keys = set().union(*(pool.slots for pool in self.pools), self.file.places if self.file else ())
        return np.array(sorted({max(key, ~key) for key in keys}), np.int64)

    @property
    def file_bytes(self) -> int:
        """Length of the file."""
        return 0 if self.file is None else self.file.num_rows * self.row_bytes

    def known(self, clients: np.ndarray) -> np.ndarray:
        """(m,) bool: which of the clients (m,) were ever written."""
        tiers = [pool.slots for pool in self.pools] + ([self.file.places] if self.file else [])
        return np.array([any(key in tier for tier in tiers) for key in self._keys(clients)], bool)

    def locate(self, directory: Path) -> None:
        """Let the file be made in `directory` from now on; rows that lie in a file already move there."""
        before, self.directory, self.file = self.file, directory, None
        if before is not None:
            row = torch.empty(self.size, dtype=self.dtype)
            for client in before.places:
                self._opened().write(client, before.read(client, row))

    def read(self, clients: np.ndarray) -> Tensor:
        """(m, size): the rows of the clients (m,) int64, in a new tensor on `device`. Moves nothing between tiers."""
        rows = torch.empty((len(clients), self.size), dtype=self.dtype, device=self.device)
        missing = list(enumerate(self._keys(clients)))
        for pool in self.pools:
            found = [(i, key) for i, key in missing if key in pool.slots]
            missing = [(i, key) for i, key in missing if key not in pool.slots]
            pool.touch([key for _, key in found])
            for part in self._chunks(found):
                rows[torch.tensor([i for i, _ in part])] = pool.get([key for _, key in part]).to(self.device)
        for i, key in missing:
            if self.file is not None and key in self.file.places:
                if self.device.type == "cpu":
                    self.file.read(key, rows[i])
                else:
                    rows[i] = self.file.read(key, torch.empty(self.size, dtype=self.dtype))
            elif self.initial is None:
                rows[i] = 0
            else:
                rows[i] = self.initial
        return rows

    def write(self, clients: np.ndarray, rows: Tensor) -> None:
        """Keep a copy of rows (m, size), on any device, for the distinct clients (m,) int64.

        `read` sees them at once; `commit` makes them last.

        Raises:
            OSError: the rows no longer fit the budgets, and the disk is full.
        """
        ids = clients.tolist()
        if min(ids, default=0) < 0:
            raise ValueError(f"client state {self.name!r}: a client is numbered {min(ids)}; numbers begin at 0")
        if len(set(ids)) < len(ids):
            raise ValueError(f"client state {self.name!r}: a client is written twice in one call")
        if rows.shape != (len(ids), self.size):
            raise ValueError(
                f"client state {self.name!r}: {len(ids)} clients need rows of shape ({len(ids)}, {self.size}), "
                f"got {tuple(rows.shape)}"
            )
        for client in self.pending.intersection(ids):
            self._drop(~client)
        self.pending.update(ids)
        rows = rows.detach()
        for part in self._chunks(range(len(ids))):
            self._put(0, [~ids[i] for i in part], rows[part[0] : part[-1] + 1])

    def commit(self) -> None:
        """Let what was written since the last commit last: the round has ended well."""
        for client in self.pending:
            self._drop(client)
            for pool in self.pools:
                if ~client in pool.slots:
                    pool.slots[client] = pool.slots.pop(~client)
            if self.file is not None and ~client in self.file.places:
                self.file.places[client] = self.file.places.pop(~client)
        self.pending.clear()

    def rollback(self, clients: np.ndarray | None = None) -> None:
        """Forget what was written since the last commit, for these clients (m,), or for all: the round has failed."""
        forgotten = set(self.pending) if clients is None else self.pending.intersection(clients.tolist())
        for client in forgotten:
            self._drop(~client)
        self.pending -= forgotten

    def forget(self, clients: np.ndarray) -> None:
        """Make committed rows of these clients (m,) initial again; their space is free, in the file when the next
        checkpoint is confirmed."""
        for client in clients.tolist():
            self._drop(client)

    def _drop(self, key: int) -> None:
        for pool in self.pools:
            pool.drop(key)
        if self.file is not None:
            self.file.drop(key)

    def _put(self, level: int, keys: list[int], rows: Tensor) -> None:
        """Place rows in a tier, the least recently used ones moving down to make room.

        A row is in one tier. Only the file may have it beside: since a snapshot, and as long as it does not change.
        """
        if level == len(self.pools):
            file = self._opened()
            for key, row in zip(keys, rows.to("cpu", self.dtype), strict=True):
                if key not in file.places:
                    file.write(key, row)
            return
        pool = self.pools[level]
        for start in range(0, len(keys), pool.capacity):
            part = keys[start : start + pool.capacity]
            for victims in self._chunks(pool.crowded(len(part))):
                self._put(level + 1, victims, pool.get(victims))
                for victim in victims:
                    pool.drop(victim)
            pool.put(part, rows[start : start + pool.capacity])

    def snapshot(self) -> dict[str, Tensor]:
        """Bring every row into the file and flush it; returns the index for the checkpoint, {} if all is initial.

        The index is "clients" (n,) and "places" (n,), int64. Once the checkpoint that holds it is safe on the disk,
        `confirm` must be called, and nothing may be written in between.

        Raises:
            OSError: the disk is full; the checkpoint before is still whole.
        """
        assert not self.pending, "a snapshot is taken between rounds"
        if self.directory is None and len(self):
            raise ValueError(
                f"client state {self.name!r} has no directory, so no checkpoint can keep it; use fedsim.record, or "
                "run_dir=..., or call locate(directory) first"
            )
        for pool in self.pools:
            changed = [c for c in pool.slots if self.file is None or c not in self.file.places]
            for part in self._chunks(changed):
                self._put(len(self.pools), part, pool.get(part))
        if self.file is None or not self.file.places:
            return {}
        self.file.sync()
        pairs = torch.tensor(sorted(self.file.places.items()))
        return {"clients": pairs[:, 0].contiguous(), "places": pairs[:, 1].contiguous()}

    def confirm(self) -> None:
        """The checkpoint of the last `snapshot` is on the disk: the rows of the one before may be overwritten."""
        if self.file is not None:
            self.file.confirm()

    def restore(self, index: dict[str, Tensor]) -> None:
        """Continue from the index of a checkpoint, with the file in `directory`.

        Raises:
            ValueError: the file is not there, or too short.
        """
        for pool in self.pools:
            pool.clear()
        self.pending.clear()
        self.file = None
        if index:
            assert self.directory is not None, "a state that was saved has a directory"
            places = dict(zip(index["clients"].tolist(), index["places"].tolist(), strict=True))
            self.file = RowFile(self.row_bytes, self.name, self.directory, places)

    def require_room(self, num_written: int) -> None:
        """Refuse early what cannot end well.

        Args:
            num_written: clients that will have been written.

        Raises:
            ValueError: their rows fit neither the budgets nor the disk.
        """
        in_memory = sum(pool.capacity for pool in self.pools)
        if num_written <= in_memory and self.directory is None:
            return  # without checkpoints nothing goes to the file
        folder = existing_folder(self.directory)
        free = shutil.disk_usage(folder).free - RESERVE_BYTES
        needed = num_written * self.row_bytes - self.file_bytes
        if needed > free:
            raise ValueError(
                f"client state {self.name!r}: {num_written:,} clients with {readable(self.row_bytes)} each need "
                f"{readable(needed)} in {folder}, where {readable(max(free, 0))} may be used; free some space there, "
                "sample fewer clients or rounds, take a smaller model, or put the run directory on a larger disk"
            )

    def _opened(self) -> "RowFile":
        if self.file is None:
            self.file = RowFile(self.row_bytes, self.name, self.directory)
        return self.file

    def _keys(self, clients: np.ndarray) -> list[int]:
        """Under which key the newest row of each client is kept."""
        return [~client if client in self.pending else client for client in clients.tolist()]

    def _chunks(self, items: Sequence[Any]) -> Iterator[list[Any]]:
        step = max(1, _CHUNK_BYTES // self.row_bytes)
        for start in range(0, len(items), step):
            yield list(items[start : start + step])
