"""Tells the kernel which rows of a mapped array are wanted next, so that it reads them while others are computed on."""

import ctypes
import mmap
import sys
from functools import cache

import numpy as np
from torch import Tensor

_SMALL = 1 << 28  # bytes: an array below this is in memory soon, whoever reads it


@cache
def _madvise() -> ctypes._CFuncPtr | None:
    if sys.platform == "win32" or not hasattr(mmap, "MADV_WILLNEED"):
        return None
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return call


def read_ahead(array: Tensor, rows: Tensor) -> int:
    """Ask for the pages of the rows; the disk delivers them in the background.

    Args:
        array: (N, ...) contiguous, on the host. Of one that is no map of a file, or small, nothing is asked.
        rows: (n,) int64 row numbers.

    Returns:
        How many bytes were asked for, whole pages.
    """
    advise = _madvise()
    if advise is None or array.nbytes < _SMALL or len(rows) == 0 or not array.is_contiguous():
        return 0
    page, stride = mmap.PAGESIZE, array.nbytes // len(array)
    starts = array.data_ptr() + np.sort(rows.numpy()) * stride
    first, last = starts // page, (starts + stride - 1) // page  # pages, both included
    # Rows are sorted, so a run of pages ends where the next row begins beyond the page that follows.
    ends = np.flatnonzero(first[1:] > last[:-1] + 1)
    begins, stops = np.append(first[0], first[1:][ends]), np.append(last[:-1][ends], last[-1]) + 1
    for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
        advise(begin * page, (stop - begin) * page, mmap.MADV_WILLNEED)  # a hint: an error does not matter
    return int((stops - begins).sum()) * page
