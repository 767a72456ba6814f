"""How much memory a run uses, has used, and could still get."""

import contextlib
import ctypes
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: memory of the GPU allocated by this process, or on a CPU the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # getrusage's figure begins at what the parent had when it started this process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def used_memory_bytes(device: torch.device) -> int:
    """In use now, counted as `peak_memory_bytes` counts."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def free_memory_bytes(device: torch.device) -> int:
    """What this process could still get: of the GPU, or of the machine's memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def give_back_memory() -> None:
    """Return to the system what has been freed on the host, which glibc, and MKL in PyTorch, else keep in pieces for
    the next time."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # PyTorch has no MKL, or keeps it to itself
        loaded = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
        loaded.mkl_serv_free_buffers()  # those that are not in use; in MKL's manual it is `mkl_free_buffers`
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def zeros_apart(size: int, dtype: torch.dtype) -> Tensor:
    """(size,) zeros on the CPU, in pages of their own: the system gives them when they are written, and has them back
    when the tensor goes. On the heap they would lie between what lasts for a step only, and break it in pieces."""
    try:
        own = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        pages = torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize, **own), dtype=dtype)
    except OSError as error:
        raise RuntimeError(f"can't allocate memory: {size * dtype.itemsize} bytes for a sum") from error
    return torch.empty(0, dtype=dtype).set_(
        pages.untyped_storage(), 0, (size,), (1,)
    )  # an operation, for `TensorMeter`


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left; of PyTorch on a CPU this is a plain RuntimeError."""
    said = ("not enough memory", "can't allocate memory", "Storage size calculation overflowed")
    said += ("CUDA error: out of memory", "_ALLOC_FAILED")  # of what CUDA's libraries take for themselves
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in said)
    )


class TensorMeter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it: `now` alive, and `peak`, on any device.

    It sees tensors, not what a library takes for itself while it computes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.finalize[Any, Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it would import the compiler

    def _count(self, value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            key = storage._cdata
            if key not in self.alive:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                self.alive[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self.now -= size
        self.alive.pop(key, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = [v.untyped_storage()._cdata for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in known:
                self._count(value)  # not a view of, or written into, an argument
        return result
