"""Gathering samples: the same from memory, from a map, through the uploading thread, and of a set beyond the memory."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from fedsim.data import resident
from fedsim.data.cache import packed
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.read_ahead import ReadAhead, read_ahead
from fedsim.data.resident import ResidentSplit, Upload

CPU = torch.device("cpu")


@pytest.fixture
def dataset() -> FederatedDataset:
    inputs = torch.arange(120, dtype=torch.int16).view(40, 3)
    split = Split(inputs=inputs, targets=torch.arange(40) * 2, offsets=np.array([0, 10, 40]))
    return FederatedDataset(name="rows", train=split, client_ids=["a", "b"], num_classes=80)


PARTS = [[3, 1, 4, 1], [5], [9, 2, 6, 5, 3, 5], [8, 9], [7, 9, 3, 2]]


def test_parts_come_in_their_order(dataset):
    data = ResidentSplit(dataset, dataset.train, CPU)
    seen = [(x.clone(), y) for x, y in data.gather_all(data.rows(np.array(part)) for part in PARTS)]
    assert len(seen) == len(PARTS)
    for part, (x, y) in zip(PARTS, seen, strict=True):
        assert torch.equal(x, dataset.train.inputs[part])
        assert torch.equal(y, dataset.train.targets[part])


def test_the_uploading_thread_delivers_what_was_announced_and_what_was_not(dataset):
    upload = Upload(dataset.train.inputs, dataset.train.targets, CPU)
    parts = [torch.tensor(part) for part in PARTS]
    announced = [parts[1], torch.tensor([0]), None, parts[4], None]  # the second announcement is not kept
    seen = [upload.take(rows, ahead) for rows, ahead in zip(parts, announced, strict=True)]
    for rows, (x, y) in zip(parts, seen, strict=True):  # none is overwritten by a later one
        assert torch.equal(x, dataset.train.inputs[rows])
        assert torch.equal(y, dataset.train.targets[rows])


def test_the_announced_rows_are_read_before_they_are_asked_for(dataset):
    upload = Upload(dataset.train.inputs, dataset.train.targets, CPU)
    upload.take(torch.tensor([1]), torch.tensor([7, 8]))
    assert upload.ready is not None
    assert torch.equal(upload.ready[1].result(timeout=60)[1], dataset.train.targets[[7, 8]])


def test_a_gpu_has_one_copy_of_a_split_as_long_as_somebody_gathers_from_it(dataset, monkeypatch):
    """A device without memory of its own stands for the GPU: what is there cannot be read, only counted."""
    free = dataset.train.inputs.nbytes + dataset.train.targets.nbytes
    monkeypatch.setattr(resident.torch.cuda, "mem_get_info", lambda device: (2 * free, 0))
    meta = torch.device("meta")
    one, two = (resident._copy(dataset.train, meta) for _ in range(2))
    assert one is two is not None
    assert (one.inputs.device, one.targets.device) == (meta, meta)
    assert list(resident._copies) == [(dataset.train, meta)]
    del one, two
    assert not resident._copies
    monkeypatch.setattr(resident.torch.cuda, "mem_get_info", lambda device: (2 * free - 1, 0))
    assert resident._copy(dataset.train, meta) is None


@pytest.mark.gpu
def test_samples_that_stay_on_the_host_reach_the_gpu(dataset, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    monkeypatch.setattr(resident.torch.cuda, "mem_get_info", lambda device: (0, 0))
    data = ResidentSplit(dataset, dataset.train, torch.device("cuda"))
    assert data.upload is not None
    parts = [np.random.default_rng(i).integers(0, 40, 5 + i % 3) for i in range(50)]
    for part, (x, y) in zip(parts, data.gather_all(data.rows(part) for part in parts), strict=True):
        assert torch.equal(x.cpu(), dataset.train.inputs[part])
        assert torch.equal(y.cpu(), dataset.train.targets[part])


def test_a_set_larger_than_the_memory_is_mapped_and_read_ahead(tmp_path: Path):
    width = 1 << 20
    count = 2 * psutil.virtual_memory().total // width + 1

    def build(folder: Path) -> dict[str, int]:
        array = np.lib.format.open_memmap(folder / "inputs.npy", mode="w+", dtype=np.uint8, shape=(count, width))
        array[-1], array[count // 2] = 7, 3  # a sparse file: zeros take no place on the disk
        return {"count": count}

    arrays, meta = packed(tmp_path / "large", build)
    assert meta == {"count": count}
    assert arrays["inputs"].nbytes > 2 * psutil.virtual_memory().total
    split = Split(inputs=torch.from_numpy(arrays["inputs"]), targets=torch.arange(count))
    large = FederatedDataset(name="large", train=split, num_classes=count)
    data = ResidentSplit(large, split, CPU)
    rows = [torch.tensor([count - 1, 0]), torch.tensor([count // 2])]
    first, second = [x[:, -1].tolist() for x, _ in data.gather_all(rows)]
    assert (first, second) == ([7, 0], [3])
    arrays["inputs"][0, 0] = 1  # writable, and the file is not touched
    assert np.load(tmp_path / "large" / "inputs.npy", mmap_mode="r")[0, 0] == 0


def test_what_is_read_ahead_is_whole_pages_and_small_gaps():
    page = os.sysconf("SC_PAGE_SIZE")
    memory = torch.zeros(65 * page, dtype=torch.uint8)
    begin = -memory.data_ptr() % page
    array = memory[begin : begin + 64 * page].view(256, page // 4)  # four rows a page
    assert read_ahead(array, torch.tensor([0, 1, 3])) == page
    assert read_ahead(array, torch.tensor([9, 4, 0])) == 3 * page  # neighbours
    assert read_ahead(array, torch.tensor([200, 0, 201])) == 2 * page
    assert read_ahead(array, torch.tensor([40, 0])) == 11 * page
    assert read_ahead(array, torch.tensor([40, 0], dtype=torch.int32)) == 11 * page  # as plans have them
    assert read_ahead(array, torch.tensor([], dtype=torch.int64)) == 0


def test_nothing_is_asked_for_while_nobody_waits_for_the_disk(monkeypatch):
    waits = [0]
    monkeypatch.setattr("fedsim.data.read_ahead._waits", lambda: waits[0])
    monkeypatch.setattr("fedsim.data.read_ahead._PATIENCE", 2)
    array, rows = torch.zeros((100, 5000), dtype=torch.uint8), torch.tensor([3])
    assert ReadAhead(array).large is False
    monkeypatch.setattr("fedsim.data.read_ahead._SMALL", 0)
    ahead = ReadAhead(array)
    assert ahead.ask(rows) == 0
    waits[0] = 1
    assert [ahead.ask(rows) > 0 for _ in range(3)] == [True, True, False]
    waits[0] = 2
    assert ahead.ask(rows) > 0
