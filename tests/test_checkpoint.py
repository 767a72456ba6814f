"""Checkpoints: kill -9 at any moment, resume, and end bitwise where the unbroken run ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fedsim.checkpoint as checkpoint_module
from fedsim.checkpoint import FILE, Checkpoint

ARGUMENTS = ["+experiment=debug", "data.num_clients=8", "model=mlp", "model.hidden_sizes=[32]", "local.momentum=0.9"]
ROUNDS = 40
# What depends on the clock and on the machine, not on the run.
MEASURED = ("seconds", "evaluate_seconds", "peak_memory_bytes")


def metrics(directory: Path) -> list[dict]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def bits(file: Path) -> str:
    """A digest: pytest would compare long bytes for many minutes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def start(directory: Path, *arguments: str) -> subprocess.Popen:
    package = str(Path(checkpoint_module.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", *ARGUMENTS, f"server.num_rounds={ROUNDS}", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9_in_the_middle_of_a_round_then_resume_is_bitwise_the_unbroken_run(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    whole = start(tmp_path, f"hydra.run.dir={unbroken}")
    assert whole.wait(120) == 0, whole.stderr.read()
    whole.stderr.close()

    victim = start(tmp_path, f"hydra.run.dir={broken}", "checkpoint.every=3")
    file, deadline = broken / "metrics.jsonl", time.monotonic() + 120
    while not (file.exists() and file.read_text().count("\n") >= 8) and time.monotonic() < deadline:
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    victim.stderr.close()
    assert not (broken / "model.safetensors").exists(), "it ended before it was killed"
    assert 8 <= len(metrics(broken)) < ROUNDS
    with file.open("a") as appended:
        appended.write('{"round": 99, "train_l')  # a line cut short, as a crash can leave it

    resumed = start(tmp_path, f"checkpoint.resume={broken}", "checkpoint.every=3")
    assert resumed.wait(120) == 0, resumed.stderr.read()
    resumed.stderr.close()
    assert bits(broken / "model.safetensors") == bits(unbroken / "model.safetensors")
    assert metrics(broken) == metrics(unbroken)
    assert bits(broken / "clients.csv") == bits(unbroken / "clients.csv")
    assert len((broken / "metrics.csv").read_text().splitlines()) == ROUNDS + 1
    assert not list(broken.glob(".*.tmp"))


def test_a_finished_run_can_be_given_more_rounds(fedsim, tmp_path):
    short = fedsim("+experiment=debug", "trainer=serial", directory=tmp_path / "short")
    long = fedsim("+experiment=debug", "trainer=serial", "server.num_rounds=8", directory=tmp_path / "long")
    more = fedsim("+experiment=debug", "trainer=serial", "server.num_rounds=8", f"checkpoint.resume={short.directory}")
    assert more.code == 0, more.err
    assert bits(short.directory / "model.safetensors") == bits(long.directory / "model.safetensors")
    assert [row["round"] for row in metrics(short.directory)] == list(range(1, 9))


def test_another_run_is_refused_with_the_keys_that_differ(fedsim):
    first = fedsim("+experiment=debug", "server.num_rounds=1")
    before = {f.name: f.read_bytes() for f in first.directory.iterdir() if f.name != "run.log"}
    other = fedsim("+experiment=debug", "local.learning_rate=0.5", "seed=7", f"checkpoint.resume={first.directory}")
    assert other.code == 1
    assert "differs in local.learning_rate (0.02 there, 0.5 here), seed (0 there, 7 here)" in other.err
    assert {f.name: f.read_bytes() for f in first.directory.iterdir() if f.name != "run.log"} == before


def checkpoint(round: int = 3, **changes) -> Checkpoint:
    values = {"vector": torch.arange(4.0), "state": {"momentum": torch.ones(4)}, "config": {"a": {"b": 1}}}
    return Checkpoint(round=round, dataset="d", **{**values, **changes})


def test_round_trip(tmp_path):
    checkpoint().save(tmp_path)
    loaded = Checkpoint.load(tmp_path, "cpu")
    assert (loaded.round, loaded.config, loaded.dataset) == (3, {"a": {"b": 1}}, "d")
    assert torch.equal(loaded.vector, torch.arange(4.0))
    assert torch.equal(loaded.state["momentum"], torch.ones(4))


def test_every_kind_of_state_comes_back(tmp_path):
    """Vectors that are views of one tensor, and one that is not contiguous; names of clients' states with dots."""
    vector = torch.arange(6.0)
    written = checkpoint(
        vector=vector,
        state={"same": vector, "first": vector[:2], "column": vector.view(2, 3)[:, 1]},
        uplink={"residual": torch.ones(2)},
        clock={"seconds": torch.tensor(2.5)},
        clients={"error.feedback": {"clients": torch.tensor([3]), "places": torch.tensor([0])}},
    )
    written.save(tmp_path)
    loaded = Checkpoint.load(tmp_path, "cpu")
    assert torch.equal(loaded.vector, vector)
    for kind in ("state", "uplink", "clock"):
        found, expected = getattr(loaded, kind), getattr(written, kind)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.clients.keys() == {"error.feedback"}
    assert {part: t.tolist() for part, t in loaded.clients["error.feedback"].items()} == {"clients": [3], "places": [0]}


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    checkpoint().save(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"round 4: cannot write the checkpoint.*free some space.*untouched"):
        checkpoint(4).save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of fedsim, or it is damaged"):
        Checkpoint.load(tmp_path, "cpu")


@pytest.mark.parametrize("about", ["{}", "7", '{"format": 1}', '{"format": 1, "round": 2, "config": {}}'])
def test_a_file_of_tensors_that_is_no_checkpoint_is_named(tmp_path, about):
    save_file({"weight": torch.zeros(2)}, tmp_path / FILE, {"fedsim": about})
    with pytest.raises(ValueError, match="is not a checkpoint of fedsim, or it is damaged"):
        Checkpoint.load(tmp_path, "cpu")


def test_a_checkpoint_of_another_format_says_so(tmp_path):
    save_file({"vector": torch.zeros(2)}, tmp_path / FILE, {"fedsim": '{"format": 99}'})
    with pytest.raises(ValueError, match="has checkpoint format 99, this version reads format 1"):
        Checkpoint.load(tmp_path, "cpu")


def test_other_data_under_the_same_configuration_is_refused():
    with pytest.raises(ValueError, match="the data or its partition is not"):
        checkpoint().check({"a": {"b": 1}}, "another")


def test_where_and_how_long_may_differ():
    """Where things lie, how a run reports, who computes, and how long it runs; a key is refused wherever it stands."""
    groups = ("checkpoint", "tracking", "client_state", "role", "transport", "deployment")
    server, data = ("num_rounds", "stop_at_accuracy", "patience"), ("root", "cache_dir", "download")

    def config(value):
        nested = {"server": dict.fromkeys(server, value), "data": dict.fromkeys(data, value)}
        return {**{group: {"any": value} for group in groups}, **nested, "seed": 1}

    checkpoint(config=config(1)).check(config(2), "d")
    for there, here in (({"new": 1}, {}), ({}, {"new": 1})):
        with pytest.raises(ValueError, match="differs in new"):
            checkpoint(config={**config(1), **there}).check({**config(1), **here}, "d")
