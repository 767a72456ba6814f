"""RowFile: rows of equal length in one file, of which those of the last checkpoint survive a kill at any moment.

Shadow paging: a place that the last checkpoint refers to is never overwritten. A newer version of its row goes to a
free place, and the old place becomes free when the next checkpoint has its name on the disk. So a checkpoint of
thousands of rows costs the writing of those that changed and of a small index, and nothing is copied. The file holds
at most every client's row once and, beside them, the rows that changed between two checkpoints.

The file is read and written by position instead of being mapped into memory: a write to a mapping kills the process
with SIGBUS when the disk is full, where a write by position raises an error that can be explained, and mapped pages
would count as the process's memory.
"""

import heapq
import os
import shutil
import tempfile
import weakref
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

# The disk is asked for its free space once for so many bytes of growth, and so much is always left free on it.
_GROWTH_BYTES = 1 << 26
RESERVE_BYTES = 1 << 28


class RowFile:
    """The tier on the disk: rows at places of one file, under shadow paging.

    Args:
        row_bytes: of a row.
        name: of the vector.
        directory: None makes a file without a name.
        places: of the rows of a checkpoint to continue, by client; None starts an empty file.

    Attributes:
        places: client -> place of its row; a client that is not there has no row, or an older one, in the file.
        num_rows: places in the file, used or free.

    Raises:
        ValueError: `places` are given, and the file is not there or too short for them.
    """

    def __init__(self, row_bytes: int, name: str, directory: Path | None, places: dict[int, int] | None = None) -> None:
        self.row_bytes, self.name = row_bytes, name
        self.places = places or {}
        self.kept = set(self.places.values())  # of the last checkpoint: not to be overwritten
        self.num_rows = max(self.kept, default=-1) + 1
        self.free = [p for p in range(self.num_rows) if p not in self.kept]  # sorted, so a heap
        self.checked = self.num_rows  # rows for which the disk is known to have room
        if directory is None:
            self.folder = existing_folder(None)
            self.file: FileIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (open as long as this object)
        else:
            self.folder = directory
            path = directory / f"{name}.rows"
            if places is None:
                directory.mkdir(parents=True, exist_ok=True)
            elif not path.is_file() or path.stat().st_size < self.num_rows * row_bytes:
                raise ValueError(
                    f"{path} is missing or too short for its checkpoint, so the clients' state {name!r} is lost; copy "
                    "it from where the run was made, together with the checkpoint"
                )
            self.file = FileIO(path, "w+" if places is None else "r+")
        weakref.finalize(self, self.file.close)

    def read(self, client: int, row: Tensor) -> Tensor:
        """Fill a contiguous CPU row."""
        view = row.view(torch.uint8).numpy().data
        self.file.seek(self.places[client] * self.row_bytes)
        while view:
            count = self.file.readinto(view)
            assert count, "a row that was written is in the file"
            view = view[count:]
        return row

    def write(self, client: int, row: Tensor) -> None:
        """Write a row of a client that has none in the file, at a place that no checkpoint needs."""
        if self.free:
            place = heapq.heappop(self.free)
        else:
            self._grow()
            place = self.num_rows
            self.num_rows += 1
        view = row.contiguous().view(torch.uint8).numpy().data
        try:
            self.file.seek(place * self.row_bytes)
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            raise self._full(str(error)) from error
        self.places[client] = place

    def drop(self, client: int) -> None:
        """The client's row is out of date; the place is free unless the last checkpoint needs it."""
        place = self.places.pop(client, None)
        if place is not None and place not in self.kept:
            heapq.heappush(self.free, place)

    def confirm(self) -> None:
        """A checkpoint with these `places` is safe: the places of the one before may be used again."""
        now = set(self.places.values())
        for place in self.kept - now:
            heapq.heappush(self.free, place)
        self.kept = now

    def sync(self) -> None:
        """Flush the rows and the file's name to the disk."""
        os.fsync(self.file.fileno())
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _grow(self) -> None:
        if self.num_rows < self.checked:
            return
        rows = max(1, _GROWTH_BYTES // self.row_bytes)
        free = shutil.disk_usage(self.folder).free
        if free < rows * self.row_bytes + RESERVE_BYTES:
            raise self._full(f"{readable(free)} are left, of which {readable(RESERVE_BYTES)} are kept free")
        self.checked = self.num_rows + rows

    def _full(self, why: str) -> OSError:
        return OSError(
            f"client state {self.name!r}: no room in {self.folder} for more than {self.num_rows:,} rows of "
            f"{readable(self.row_bytes)} ({why}); free some space there and resume, raise client_state.ram_gib, or "
            "sample fewer clients"
        )


def existing_folder(directory: Path | None) -> Path:
    """`directory`, or the nearest folder above it that is there; None: the folder for temporary files."""
    folder = Path(tempfile.gettempdir()) if directory is None else directory
    while not folder.exists():
        folder = folder.parent
    return folder


def readable(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
