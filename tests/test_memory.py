"""What is given back to the system, and pages of one's own."""

import ctypes
import os
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch

from fedsim.memory import TensorMeter, give_back_memory, out_of_memory, zeros_apart


def mkl_bytes():
    """What MKL holds for later."""
    try:
        stat = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD).mkl_serv_mem_stat
    except (OSError, AttributeError):
        pytest.skip("this PyTorch has no MKL whose buffers can be counted")
    stat.restype = ctypes.c_longlong
    return stat(ctypes.byref(ctypes.c_int()))


def test_buffers_of_finished_products_go_back():
    torch.randn(40, 3136) @ torch.randn(3136, 512)
    if not mkl_bytes():
        pytest.skip("MKL keeps nothing on this processor")
    give_back_memory()
    assert mkl_bytes() == 0


def test_what_is_computed_meanwhile_is_not_disturbed():
    left, right = torch.randn(40, 1000), torch.randn(1000, 300)
    expected, wrong, ended = left @ right, [], threading.Event()

    def compute():
        while not ended.is_set():
            wrong.extend([1] * (not torch.equal(left @ right, expected)))

    thread = threading.Thread(target=compute)
    thread.start()
    for _ in range(300):
        give_back_memory()
    ended.set()
    thread.join()
    assert not wrong


def test_pages_of_their_own_are_zero_and_taken_when_written():
    before = psutil.Process().memory_info().rss
    large = zeros_apart(1 << 26, torch.float32)  # 256 MiB
    assert psutil.Process().memory_info().rss - before < 64 << 20
    large[: 1 << 20] += 1.0
    assert large[: (1 << 20) + 1].sum() == 1 << 20
    assert large.shape == (1 << 26,)


def test_pages_of_their_own_are_counted():
    with TensorMeter() as meter:
        kept = zeros_apart(1 << 20, torch.float64)
        assert meter.now == kept.nbytes
        del kept
        assert meter.now == 0
    assert meter.peak == 8 << 20


def test_pages_that_the_system_does_not_have_are_memory_that_is_out():
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        zeros_apart(1 << 56, torch.float64)
    assert out_of_memory(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of each of its mappings")
def test_pages_belong_to_one_process():
    """A process that is forked must not write into its parent's sum."""
    pages = zeros_apart(1 << 12, torch.float64)
    flags = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(bound, 16) for bound in line.split()[0].split("-"))
        if start <= pages.data_ptr() < stop:
            flags.append(line.split()[1])
    assert flags == ["rw-p"]
