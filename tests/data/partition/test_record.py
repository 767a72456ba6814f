"""The record of a partition: its digest, its file, its table."""

import numpy as np
import pytest

from fedsim.data.partition import Dirichlet, Partition


@pytest.fixture
def partition(make_toy) -> Partition:
    return Dirichlet(num_clients=7, alpha=0.3, min_samples=10).partition(make_toy(), seed=3)


def test_digest_is_of_the_assignment_alone(partition):
    def changed(**fields):
        values = {"offsets": partition.offsets, "order": partition.order, "num_samples": 600, "recipe": {}}
        return Partition(**(values | fields)).digest()

    assert changed() == partition.digest()
    assert changed(order=partition.order.astype(">i4")) == partition.digest()
    assert changed(num_samples=601) != partition.digest()
    assert changed(order=partition.order[::-1]) != partition.digest()
    # one bound moved by one sample
    assert changed(offsets=partition.offsets + np.eye(8, dtype=int)[3]) != partition.digest()


def test_save_and_load_give_it_back(tmp_path, partition):
    path = tmp_path / "partitions" / "one.npz"
    partition.save(path)
    partition.save(path)  # replaces
    loaded = Partition.load(path)
    assert loaded.digest() == partition.digest()
    assert (loaded.recipe, loaded.seed, loaded.facts) == (partition.recipe, partition.seed, partition.facts)
    assert [p.name for p in path.parent.iterdir()] == ["one.npz"]


def test_a_failed_save_leaves_the_old_file(tmp_path, partition):
    path = tmp_path / "one.npz"
    partition.save(path)
    broken = Partition(offsets=partition.offsets, order=partition.order, num_samples=600, recipe={"x": object()})
    with pytest.raises(TypeError):
        broken.save(path)
    assert Partition.load(path).digest() == partition.digest()
    assert [p.name for p in tmp_path.iterdir()] == ["one.npz"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_load_refuses_other_files(tmp_path, content):
    path = tmp_path / "one.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"one.npz is not a partition that fedsim saved"):
        Partition.load(path)
    np.savez(path, offsets=np.arange(3))
    with pytest.raises(ValueError, match=r"one.npz is not a partition that fedsim saved"):
        Partition.load(path)
    with pytest.raises(FileNotFoundError):
        Partition.load(tmp_path / "missing.npz")


def test_frame_counts_classes():
    partition = Partition(offsets=np.array([0, 3, 3, 5]), order=np.array([0, 1, 5, 4, 2]), num_samples=7, recipe={})
    frame = partition.frame(np.array([0, 1, 2, 0, 2, 1, 0]), 4)
    assert frame.columns.tolist() == ["client", "samples", "class_0", "class_1", "class_2", "class_3"]
    assert frame.to_numpy().tolist() == [[0, 3, 1, 2, 0, 0], [1, 0, 0, 0, 0, 0], [2, 2, 0, 0, 2, 0]]
    assert partition.num_dropped == 2
    with pytest.raises(ValueError, match="labels run from 0 to 2: not 2 classes"):
        partition.frame(np.array([0, 1, 2, 0, 2, 1, 0]), 2)
    with pytest.raises(ValueError, match="the partition has 7 samples"):
        partition.frame(np.array([0, 1]), 2)


def test_apply_refuses_other_data(make_toy, partition):
    with pytest.raises(ValueError, match="is of 600 training samples, but data=toy has 601"):
        partition.apply(make_toy(601))
