"""Threads for many small pieces of work, each of which fits in a core's cache."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def single_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as PyTorch's operators use, and in each of them operators use one."""
    number = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(number)  # the threads' settings reach beyond them
