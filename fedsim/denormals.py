"""Numbers below 1e-38 (2e-308 in float64) become zero while a run computes: on a CPU a product with one takes 100 times
as long, and none changes a result. The process around the run keeps its own arithmetic.

The setting is a processor register of each thread. PyTorch's worker threads take theirs from the thread that starts
them, once: where they were started before the first round, they go on as they were.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flush them inside, in this thread; a decorator, too."""
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
