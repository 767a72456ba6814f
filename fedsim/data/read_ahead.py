"""Tells the kernel which rows of a mapped array are wanted next, so that it reads them while others are computed on."""

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
from torch import Tensor

_SMALL = 1 << 28  # bytes: an array below this is in memory soon, whoever reads it
_GAP = 16  # pages between two wanted ones that are read with them: less work than to ask twice
_PATIENCE = 32  # blocks that are asked for after a wait for the disk


class ReadAhead:
    """Asks for the rows of one array while the disk is slow to deliver them.

    To ask for what is in memory already costs as much as to train a small model on it: so it is left as soon as this
    process has not waited for a page for a while.

    Args:
        array: (N, ...) contiguous, on the host.
    """

    def __init__(self, array: Tensor) -> None:
        self.array, self.large = array, array.nbytes >= _SMALL and array.is_contiguous()
        self.waits, self.left = _waits() if self.large else 0, 0

    def ask(self, rows: Tensor) -> int:
        """See `read_ahead`; 0 where nothing was asked for."""
        if not self.large:
            return 0
        waits = _waits()
        if waits > self.waits:
            self.waits, self.left = waits, _PATIENCE
        if self.left == 0:
            return 0
        self.left -= 1
        return read_ahead(self.array, rows)


def _waits() -> int:
    """Pages that this process had to wait for (major page faults)."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


@cache
def _madvise() -> Callable[..., int] | None:
    if sys.platform == "win32" or not hasattr(mmap, "MADV_WILLNEED"):
        return None
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return call


def read_ahead(array: Tensor, rows: Tensor) -> int:
    """Ask for the pages of the rows; the disk delivers them in the background.

    Args:
        array: (N, ...) contiguous, on the host.
        rows: (n,) row numbers, int32 or int64.

    Returns:
        How many bytes were asked for, whole pages.
    """
    advise = _madvise()
    if advise is None or len(rows) == 0:
        return 0
    page, stride = mmap.PAGESIZE, array.nbytes // len(array)
    starts = array.data_ptr() + np.sort(rows.numpy()).astype(np.int64) * stride  # addresses, beyond int32
    first, last = starts // page, (starts + stride - 1) // page  # pages, both included
    # Rows are sorted, so a run of pages ends where the next row begins far beyond it.
    ends = np.flatnonzero(first[1:] > last[:-1] + 1 + _GAP)
    begins, stops = np.append(first[0], first[1:][ends]), np.append(last[:-1][ends], last[-1]) + 1
    for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
        advise(begin * page, (stop - begin) * page, mmap.MADV_WILLNEED)  # a hint: an error does not matter
    return int((stops - begins).sum()) * page
