"""UpdateStore: one matrix, whether its rows lie in RAM or in a file, whatever the order of their arrival."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedsim
import fedsim.robust.store as store_module
from fedsim.robust.store import UpdateStore


def filled(rows, order=None, *, kept=0, **options):
    """A store of `rows`, of which `kept` fit the memory, put in the given order."""
    store = UpdateStore(
        range(len(rows)), rows.shape[1], dtype=rows.dtype, memory_bytes=kept * rows[0].nbytes, **options
    )
    for i in order or range(len(rows)):
        store.put([i], rows[i : i + 1], [float(i + 1)])
    return store


@pytest.fixture
def rows():
    return torch.randn(7, 103, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kept", [0, 3, 7, 100])
@pytest.mark.parametrize("width", [1, 10, 1000])
def test_blocks_of_columns_make_up_the_matrix(rows, kept, width, monkeypatch):
    monkeypatch.setattr(store_module, "_BLOCK", width * len(rows) * rows.itemsize)
    store = filled(rows, [3, 0, 6, 2, 5, 1, 4], kept=kept)
    blocks = [(part, block.clone()) for part, block in store.columns()]
    assert all(block.shape == (7, part.stop - part.start) for part, block in blocks)
    assert max(block.shape[1] for _, block in blocks) == min(width, 103)
    assert torch.equal(torch.cat([block for _, block in blocks], dim=1), rows)
    assert store.weights.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert store.file_bytes == max(0, 7 - kept) * rows[0].nbytes


def test_sums_norms_and_distances_are_those_of_the_whole_matrix(rows, monkeypatch):
    monkeypatch.setattr(store_module, "_BLOCK", 20 * len(rows) * rows.itemsize)
    store = filled(rows, kept=2)
    weights = torch.arange(7.0, dtype=torch.float64)
    torch.testing.assert_close(store.weighted_sum(weights), weights @ rows)
    torch.testing.assert_close(store.squared_norms(), rows.square().sum(1))
    torch.testing.assert_close(store.squared_norms(rows[2]), (rows - rows[2]).square().sum(1))
    torch.testing.assert_close(store.squared_distances(), torch.cdist(rows, rows).square())


def test_distances_of_almost_equal_updates_keep_their_digits():
    rows = 1e3 + 1e-3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack([(rows - row).square().sum(1) for row in rows])
    torch.testing.assert_close(filled(rows).squared_distances(), expected, rtol=1e-9, atol=0)


def test_a_full_disk_is_an_error_that_says_what_to_do(rows, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    store = UpdateStore(range(7), 103, memory_bytes=0)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"cannot keep 7 updates .*No space left.*aggregator\.spill_dir"):
        store.put([0], rows[:1].float(), [1.0])


# 200 updates of 2 MB, 400 MB together, under a budget of 20 MB: what the process has in RAM beyond what it had after
# the imports. ru_maxrss counts pages of mapped files as well, so that a map would show.
MEASURE = """
import resource, sys, torch
import fedsim.robust.store as store_module
from fedsim.robust import median
from fedsim.robust.store import UpdateStore
torch.set_num_threads(1)
store_module._BLOCK = 1 << 22
size, num = 500_000, 200
store = UpdateStore(range(num), size, memory_bytes=20e6, directory=sys.argv[1])
row = torch.empty(1, size)
list(torch.sort(torch.rand(10, 10), dim=0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(num):
    store.put([i], row.fill_(float(i)), [1.0])
result = median().rule(store)
assert torch.equal(result, torch.full((size,), 99.5, dtype=torch.float64))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, store.file_bytes)
"""


def test_the_median_of_more_updates_than_memory_holds_stays_within_the_budget(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(fedsim.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    grown, in_file = map(int, done.stdout.split())
    assert in_file == 190 * 2_000_000
    # budget 20 MB, result 4 MB, a block of 4 MB, sorted, with the order that sort returns (int64), and what sort takes
    # for itself; all updates would be 400 MB
    assert grown < 80e6, f"{grown / 1e6:.0f} MB"
    assert list(tmp_path.iterdir()) == [], "the file has no name, so nothing is left"
