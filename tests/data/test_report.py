"""The data report: its table, its numbers, its files."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.partition import Holdout, Partition, Shards
from fedsim.data.report import class_counts, client_frame, facts, report, summarise


def owned() -> FederatedDataset:
    """Two clients: ann has two samples of class 0 and a test sample of class 1, bob three of class 2."""
    train = Split(inputs=torch.zeros(5, 1), targets=torch.tensor([0, 0, 2, 2, 2]), offsets=np.array([0, 2, 5]))
    test = Split(inputs=torch.zeros(2, 1), targets=torch.tensor([1, 1]), offsets=np.array([0, 1, 1]))
    return FederatedDataset(name="toy", train=train, test=test, client_ids=["ann", "bob"], num_classes=3)


def test_the_table_counts_all_samples_of_a_client():
    frame = client_frame(owned())
    assert frame[["client", "samples", "train", "test", "class_0", "class_1", "class_2"]].to_numpy().tolist() == [
        ["ann", 3, 2, 1, 2, 1, 0],
        ["bob", 3, 3, 0, 0, 0, 3],
    ]
    assert "validation" not in frame
    assert frame["effective_classes"].iloc[1] == 1


def test_the_summary_says_what_the_table_holds():
    summary = summarise(owned(), client_frame(owned()))
    assert summary["num_samples"] == {"train": 5, "test": 1}
    assert summary["num_central_test_samples"] == 0
    assert summary["sizes"] == {"min": 3, "median": 3.0, "mean": 3.0, "max": 3, "gini": 0.0}
    # ann has shares 2/3 and 1/3
    ann = np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert summary["effective_classes"]["mean"] == pytest.approx((ann + 1) / 2)
    told = facts(summary)
    assert told["samples of clients"] == "6 (train 5, test 1)"
    assert "of 3 a client" in told["effective classes"]


def test_the_files_are_all_there_and_agree(tmp_path):
    split = Split(inputs=torch.zeros(120, 1), targets=torch.arange(120) % 3)
    dataset = FederatedDataset(name="toy", train=split, test=split, num_classes=3)
    made = Shards(num_clients=6, holdout=Holdout(validation_fraction=0.2)).partition(dataset, 1)
    summary = report(made.apply(dataset), tmp_path / "report", partition=made, title="toy")
    pictures = {f"{name}.{kind}" for name in ("class_bars", "class_map", "sizes") for kind in ("png", "pdf")}
    tables = {"clients.csv", "clients.parquet", "data_report.json", "partition.npz"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == pictures | tables
    assert json.loads((tmp_path / "report" / "data_report.json").read_text()) == json.loads(json.dumps(summary))
    csv, parquet = (
        pd.read_csv(tmp_path / "report" / "clients.csv", dtype={"client": str}),
        pd.read_parquet(tmp_path / "report" / "clients.parquet"),
    )
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False)
    assert csv.filter(like="class_").to_numpy().sum() == 120
    assert summary["num_central_test_samples"] == 120
    assert Partition.load(tmp_path / "report" / "partition.npz").digest() == summary["partition"]["digest"]
    assert (tmp_path / "report" / "class_bars.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("targets", [torch.zeros(4, 7, dtype=torch.int64), torch.rand(4), torch.tensor([0, 1, 2, 3])])
def test_targets_that_are_no_classes_have_sizes_alone(tmp_path, targets):
    split = Split(inputs=torch.zeros(4, 1), targets=targets, offsets=np.array([0, 1, 4]))
    dataset = FederatedDataset(name="text", train=split, client_ids=["a", "b"], num_classes=3)
    assert class_counts(dataset) is None
    summary = report(dataset, tmp_path)
    assert "hellinger" not in summary
    assert client_frame(dataset).columns.tolist() == ["client", "samples", "train"]
    assert {p.name for p in tmp_path.glob("*.png")} == {"sizes.png"}


def test_without_pyarrow_there_is_no_parquet_and_it_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    report(owned(), tmp_path)
    assert "pip install '.[parquet]' in fedsim's folder" in caplog.text
    assert not (tmp_path / "clients.parquet").exists()
    assert (tmp_path / "clients.csv").exists()


def test_a_dataset_without_clients_is_refused(tmp_path):
    dataset = FederatedDataset(name="toy", train=Split(inputs=torch.zeros(1, 1), targets=torch.zeros(1)), num_classes=1)
    with pytest.raises(ValueError, match="data=toy has no clients yet; apply a partition first"):
        report(dataset, tmp_path)
