"""metrics.csv grows by a line a round, without pandas, and must be what pandas would have written."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError

from fedsim.cli import MISTAKES
from fedsim.tracking.run_directory import RunDirectory

FULL = {"round": 1, "train_loss": 0.1 + 0.2, "bytes_up": 10**12, "why": 'a, "b"'}


def test_appended_rows_are_those_of_a_frame(tmp_path):
    files = RunDirectory(tmp_path)
    rows = [FULL, FULL | {"round": 2, "train_loss": 1e-30}, FULL | {"round": 3, "train_loss": math.nan, "why": ""}]
    for row in rows:
        files.log(row)
    assert (tmp_path / "metrics.csv").read_text() == pd.DataFrame(rows).to_csv(index=False)


def test_a_disk_that_is_full_at_the_model_is_a_line_and_not_a_traceback(tmp_path, monkeypatch):
    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(MISTAKES, match=r"cannot write the model in .*No space left.*checkpoint\.resume="):
        RunDirectory(tmp_path).write_model({"weight": torch.zeros(3)})
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "metrics.jsonl"}


def test_what_a_round_has_not_measured_is_a_gap_and_a_new_metric_a_column(tmp_path):
    files = RunDirectory(tmp_path)
    for row in (FULL, {"round": 2, "train_loss": 0.5}, {"round": 3, "test_accuracy": 0.25}, {"round": 4}):
        files.log(row)
    read = pd.read_csv(tmp_path / "metrics.csv")
    assert list(read.columns) == [*FULL, "test_accuracy"]
    assert read["round"].tolist() == [1, 2, 3, 4]
    assert read["train_loss"].isna().tolist() == [False, False, True, True]
    assert read["test_accuracy"].dropna().tolist() == [0.25]
