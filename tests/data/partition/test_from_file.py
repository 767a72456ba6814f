"""Replay from files: other programs' lists of rows, and manifests that were touched."""

import json

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.partition import FromFile, Holdout, Iid, Partition


@pytest.fixture
def dataset() -> FederatedDataset:
    split = Split(inputs=torch.zeros(10, 1), targets=torch.arange(10) % 2)
    return FederatedDataset(name="toy", train=split, num_classes=2)


@pytest.mark.parametrize("content", [[[3, 1], [0, 9, 4]], {"a": [3, 1], "b": [0, 9, 4]}])
def test_lists_of_rows(tmp_path, dataset, content):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    owned = FromFile(path=str(path))(dataset, 0)
    assert [owned.train.rows(c).tolist() for c in range(2)] == [[3, 1], [0, 9, 4]]
    assert owned.notes == ("partition=from_file: 5 of 10 training samples are not used",)
    held = FromFile(path=str(path), holdout=Holdout(validation_fraction=0.4)).partition(dataset, 5)
    assert held.held_out is not None
    assert held.held_out.tolist() == [[1, 0], [1, 0]]
    assert held.seed == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1], [2", "rows.json is no JSON"),
        ("[1, 2]", "must hold a list of row numbers for each client"),
        ("[]", "must hold a list of row numbers for each client"),
        ("[[1.5], [2]]", "must hold whole row numbers"),
        ('[["1"], ["2"]]', "must hold whole row numbers"),
        ("[[true], [false]]", "must hold whole row numbers"),
        ("[[1, [2]]]", "must hold whole row numbers"),
        ("[[1], []]", "client 1 has no samples"),
        ("[[1], [10]]", "rows run from 1 to 10, but data=toy has 10 training samples"),
        ("[[1, 2], [2]]", "row 2 is given to 2 clients"),
    ],
)
def test_lists_that_are_no_partition_are_refused(tmp_path, dataset, content, message):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        FromFile(path=str(path))(dataset, 0)


def test_a_missing_file_is_named(dataset):
    with pytest.raises(FileNotFoundError, match=r"partition.path=nowhere.npz does not exist"):
        FromFile(path="nowhere.npz")(dataset, 0)


def test_a_manifest_says_how_it_was_made(tmp_path, dataset):
    path = tmp_path / "one.npz"
    made = Iid(num_clients=3).partition(dataset, 7)
    made.save(path)
    with np.load(path) as file:
        text = json.loads(str(file["metadata"]))
        assert file["order"].dtype == np.uint8  # as narrow as can be
    assert text["recipe"] == {"name": "iid", "num_clients": 3, "sizes": None}
    assert text["seed"] == 7
    assert text["digest"] == made.digest()
    assert text["dataset"] == ["toy", dataset.fingerprint()]


def test_a_manifest_that_was_changed_is_refused(tmp_path, dataset):
    path = tmp_path / "one.npz"
    Iid(num_clients=3).partition(dataset, 7).save(path)
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **{**content, "order": content["order"][::-1]})
    with pytest.raises(ValueError, match=r"one.npz is not a partition .* does not have the hash that it states"):
        Partition.load(path)
    later = np.array(str(content["metadata"]).replace('"format": 1', '"format": 2'))
    np.savez(path, **{**content, "metadata": later})
    with pytest.raises(ValueError, match="it has format 2, and this fedsim reads 1"):
        Partition.load(path)


def test_a_holdout_is_added_once(tmp_path, dataset):
    path = tmp_path / "one.npz"
    Iid(num_clients=2).partition(dataset, 7).save(path)
    first, second = (FromFile(path=str(path), holdout=Holdout(test_fraction=0.2)).partition(dataset, s) for s in (1, 2))
    assert first.digest() == second.digest()  # the file's seed, not the run's
    assert first.digest() == Iid(num_clients=2, holdout=Holdout(test_fraction=0.2)).partition(dataset, 7).digest()
    first.save(path)
    with pytest.raises(ValueError, match=r"one.npz holds out samples already: leave partition.holdout out"):
        FromFile(path=str(path), holdout=Holdout(test_fraction=0.2))(dataset, 0)
