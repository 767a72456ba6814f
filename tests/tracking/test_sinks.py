"""Trackers: all of them in one run, without a network, read back by their own libraries; and the ones that fail."""

import contextlib
import json
import logging
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

import fedsim
from fedsim.cli import conf_dir
from fedsim.models import logistic
from fedsim.tracking.readback import flat
from fedsim.tracking.sinks import Run, Sinks

SINKS = ("tensorboard", "wandb", "mlflow")
# What these libraries warn of among themselves is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No key, no home, and a proxy that nobody answers: whoever looks for the network fails."""
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))


@pytest.fixture
def tracked(fedsim, offline, tmp_path):
    for name in SINKS:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[tracking]'")
    done = fedsim("+experiment=debug", f"tracking=[{','.join(SINKS)}]", "server.num_rounds=3")
    assert done.code == 0, done.err
    assert "failed" not in done.err
    return done.directory


def test_these_are_all_sinks():
    assert sorted(SINKS) == sorted(path.stem for path in (conf_dir() / "tracking").glob("*.yaml"))


def test_all_sinks_in_one_run_are_read_back_by_their_own_libraries(tracked, tmp_path):
    expected = rows(tracked)
    summary = json.loads((tracked / "summary.json").read_text())
    clients = pd.read_csv(tracked / "clients.csv")
    check_tensorboard(tracked, expected, clients)
    check_wandb(tracked, expected, summary, clients)
    check_mlflow(tmp_path / "mlruns", expected, summary, clients)


def check_tensorboard(directory: Path, expected: list[dict[str, Any]], clients: pd.DataFrame) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for name in ("train_loss", "test_accuracy", "system/process_bytes"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3]
    assert [e.value for e in events.Scalars("train_loss")] == pytest.approx([row["train_loss"] for row in expected])
    (accuracy,) = events.Histograms("clients/accuracy")
    assert accuracy.step == 3
    assert accuracy.histogram_value.num == len(clients)
    assert accuracy.histogram_value.sum == pytest.approx(clients["accuracy"].sum())
    (samples,) = events.Histograms("clients/train_samples")
    assert samples.histogram_value.num == 20
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"learning_rate": 0.02' in config
    assert "files/text_summary" in tags["tensors"]
    assert "status/text_summary" in tags["tensors"]


def log_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which W&B reads only in its own service: LevelDB's log format behind 7 bytes.

    Blocks of 32 KiB hold fragments: checksum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last).
    """
    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            return  # not written to its end yet
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def wandb_records(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], set[str]]:
    """What an offline run would send: configuration, rows, summary, and the names of its files."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 60
    while True:  # W&B's own process may still be writing when the run has finished
        records = [wandb_internal_pb2.Record.FromString(data) for data in log_records(file)]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        assert time.monotonic() < deadline, f"{file.name} has no end"
        time.sleep(0.05)
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    final: dict[str, Any] = {}
    saved: set[str] = set()
    for record in records:
        for update in record.run.config.update:
            config[update.key] = json.loads(update.value_json)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        for update in record.summary.update:
            final[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        saved |= {f.path for f in record.files.files}
    return config, history, final, saved


def check_wandb(
    directory: Path, expected: list[dict[str, Any]], summary: dict[str, Any], clients: pd.DataFrame
) -> None:
    (folder,) = (directory / "wandb").glob("offline-run-*")
    config, history, final, saved = wandb_records(folder)
    assert config["local"]["learning_rate"] == 0.02
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in expected]
    assert all(row["system/process_bytes"] > 0 for row in history)
    assert final["num_parameters"] == summary["num_parameters"]
    assert sum(final["clients/accuracy"]["values"]) == len(clients)
    assert sum(final["clients/train_samples"]["values"]) == 20
    assert {"summary.json", "model.safetensors", "clients.csv"} <= saved


def check_mlflow(folder: Path, expected: list[dict[str, Any]], summary: dict[str, Any], clients: pd.DataFrame) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("debug")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["local.learning_rate"] == "0.02"
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(row["round"], row["train_loss"]) for row in expected]
    assert run.data.metrics["final.test_accuracy"] == summary["final"]["test_accuracy"]
    assert run.data.metrics["clients.accuracy.q50"] == pytest.approx(clients["accuracy"].median())
    assert run.data.metrics["clients.train_samples.q00"] > 0
    assert run.data.metrics["system/process_bytes"] > 0
    assert {"summary.json", "model.safetensors"} <= {f.path for f in client.list_artifacts(run.info.run_id)}


def test_a_resumed_run_goes_on_in_the_same_place(fedsim, offline, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tracking]'")
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install '.[tracking]'")
    first = fedsim("+experiment=debug", "tracking=[tensorboard,mlflow]", "server.num_rounds=2")
    again = fedsim(
        "+experiment=debug",
        "tracking=[tensorboard,mlflow]",
        "server.num_rounds=4",
        f"checkpoint.resume={first.directory}",
    )
    assert again.code == 0, again.err
    assert "failed" not in again.err
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(first.directory / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("debug")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_a_resumed_run_is_whole_in_the_newest_offline_folder(fedsim, offline):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[tracking]'")
    first = fedsim("+experiment=debug", "tracking=wandb", "server.num_rounds=2")
    again = fedsim("+experiment=debug", "tracking=wandb", "server.num_rounds=4", f"checkpoint.resume={first.directory}")
    assert again.code == 0, again.err
    assert "failed" not in again.err
    folders = sorted((first.directory / "wandb").glob("offline-run-*"))
    # offline-run-TIME-ID, and -1 behind it within the same second: one id, so one run on a server
    assert len({folder.name.split("-")[3] for folder in folders}) == 1
    _, history, final, _ = wandb_records(folders[-1])
    assert [row["round"] for row in history] == [1, 2, 3, 4]
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in rows(first.directory)]
    assert final["rounds"] == 4


class Recorder:
    """A sink that keeps what it is told, and fails where it is told to."""

    def __init__(self, run: Run, *, fails: str = "") -> None:
        self.run, self.fails, self.calls = run, fails, []
        self._note("start")

    def _note(self, what: str, *details: Any) -> None:
        self.calls.append((what, *details))
        if what == self.fails:
            raise RuntimeError("out of\norder")

    def log(self, metrics: Mapping[str, float]) -> None:
        self._note("log", int(metrics["round"]))

    def clients(self, clients: pd.DataFrame) -> None:
        self._note("clients", len(clients))

    def finish(self, summary: dict[str, Any], files: list[Path]) -> None:
        self._note("finish", {f.name for f in files})

    def close(self, status: str) -> None:
        self._note("close", status)


@pytest.fixture
def run_with(make_dataset, tmp_path):
    """Runs three rounds with a recorder that fails at `fails`, beside one that does not."""

    def run(fails: str) -> tuple[dict[str, Any], dict[str, Recorder]]:
        made: dict[str, Recorder] = {}

        def factory(name: str, fails: str):
            def make(run: Run) -> Recorder:
                made[name] = Recorder.__new__(Recorder)
                made[name].__init__(run, fails=fails)
                return made[name]

            return make

        simulation = fedsim.Simulation(
            make_dataset([9, 9, 9]),
            logistic,
            server=fedsim.ServerConfig(num_rounds=3, clients_per_round=2),
            device="cpu",
        )
        sinks = {"bad": factory("bad", fails), "good": factory("good", "")}
        return fedsim.record(simulation, tmp_path / "run", config={"a": {"b": 1}}, sinks=sinks), made

    return run


WHOLE = [("start",), ("log", 1), ("log", 2), ("log", 3), ("clients", 3)]


@pytest.mark.parametrize("fails", ["start", "log", "clients", "finish", "close"])
def test_a_sink_that_fails_warns_once_and_stops_neither_the_run_nor_the_others(run_with, caplog, fails):
    with caplog.at_level(logging.WARNING, "fedsim"):
        summary, made = run_with(fails)
    assert summary["rounds"] == 3
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["tracking=bad failed and is left out from here on; the run goes on (out of order)"]
    calls = made["good"].calls
    assert calls[:5] == WHOLE
    assert calls[5][0] == "finish"
    assert {"summary.json", "metrics.csv", "model.safetensors"} <= calls[5][1]
    assert calls[6:] == [("close", "finished")]
    assert [call[0] for call in made["bad"].calls].count(fails) == 1


def test_sinks_learn_how_a_run_ended(make_dataset, tmp_path):
    run = Run(name="r", directory=tmp_path, config={}, clients=make_dataset([3]).frame())
    for error, status in ((KeyboardInterrupt, "stopped"), (ValueError, "failed")):
        sink = Recorder(run)
        with contextlib.suppress(error), Sinks({"x": lambda _run, sink=sink: sink}, torch.device("cpu")) as sinks:
            sinks.open(run)
            raise error
        assert sink.calls[-1] == ("close", status)


def test_a_library_that_is_missing_is_one_line_before_the_first_round(fedsim, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = fedsim("+experiment=debug", "tracking=wandb")
    (error,) = [line for line in done.err.splitlines() if line.startswith("fedsim: error: ")]
    assert done.code == 1
    assert "tracking=wandb needs wandb: pip install '.[tracking]' in fedsim's folder, or leave it out" in error
    assert not (done.directory / "metrics.jsonl").read_text()


def test_a_sink_that_cannot_start_is_a_warning(fedsim, monkeypatch):
    broken = ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", broken)  # has no init: an AttributeError
    done = fedsim("+experiment=debug", "tracking=wandb", "server.num_rounds=1")
    assert done.code == 0, done.err
    assert "tracking=wandb failed and is left out" in done.err


def test_an_identity_outlives_the_process_only_for_a_resume(make_dataset, tmp_path):
    def run(done: int) -> Run:
        return Run(name="r", directory=tmp_path, config={}, clients=make_dataset([3]).frame(), done=done)

    written = run(0).remember("wandb")
    assert run(0).identity("wandb") is None
    assert run(2).identity("wandb") == written
    assert run(2).identity("mlflow") is None


def test_a_configuration_is_flattened_to_dotted_keys():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": {}}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [1, 2],
        "f": {},
    }
