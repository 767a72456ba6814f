"""Real processes: launched, killed, stopped, interrupted; the same bits, and nothing left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import fedsim

# clients keep a vector, and so does the way of their updates
DEBUG = [
    "+experiment=debug", "data.num_clients=8", "server.num_rounds=80", "server.evaluate_every=0", "trainer=serial",
    "algorithm=scaffold", "transforms=[top_k]", "aggregator=median",
]  # fmt: skip
DISTRIBUTED = ["transport=torch_distributed", "transport.timeout=8", "transport.join_seconds=180"]
SLACK = 60  # seconds more than the bound, for a busy machine
PACKAGE = str(Path(fedsim.__file__).resolve().parents[1])


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Of every process that is started, from here or by a run in this process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [PACKAGE, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rows(directory: Path) -> int:
    file = directory / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def nodes_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """The nodes that a run has started, by name."""
    found = {}
    for child in psutil.Process(process.pid).children():
        name = next((a.partition("=")[2] for a in child.cmdline() if a.startswith("transport.node=")), None)
        if name is not None:
            found[name] = child
    return found


def listening(process: psutil.Process) -> set[int]:
    return {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def nothing_is_left(nodes: dict[str, psutil.Process], ports: set[int]) -> None:
    """Of a run that has ended."""
    _, alive = psutil.wait_procs(nodes.values(), timeout=1)
    assert not alive
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def model(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


UNDISTURBED: list[Path] = []


@pytest.fixture
def undisturbed(fedsim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the same run in one process, made once."""
    if not UNDISTURBED:
        done = fedsim(*DEBUG, directory=tmp_path_factory.mktemp("undisturbed") / "run")
        assert done.code == 0, done.err
        UNDISTURBED.append(done.directory)
    return UNDISTURBED[0]


@pytest.mark.slow
def test_kill_9_and_a_stop_in_the_middle_then_ctrl_c_and_resume(fedsim, tmp_path, undisturbed, start, finish):
    """Three workers, of which one is killed, one stopped; then the run is interrupted, and resumed in one process."""
    directory = tmp_path / "run"
    workers = [*DISTRIBUTED, "transport.num_workers=3", "transport.slow_factor=1000", "checkpoint.every=5"]
    first = start(tmp_path, *DEBUG, *workers, f"hydra.run.dir={directory}")
    wait_for(lambda: rows(directory) >= 5 or first.poll() is not None, "round 5")
    nodes = nodes_of(first)
    assert set(nodes) == {"worker_0", "worker_1", "worker_2"}
    nodes["worker_0"].send_signal(signal.SIGKILL)
    nodes["worker_1"].send_signal(signal.SIGSTOP)
    stopped, at = time.monotonic(), rows(directory)
    wait_for(lambda: rows(directory) >= at + 5 or first.poll() is not None, "more rounds")
    assert time.monotonic() - stopped < 8 + SLACK
    ports = listening(psutil.Process(first.pid))
    assert ports
    first.send_signal(signal.SIGINT)
    begin = time.monotonic()
    out = finish(first, 130)
    assert time.monotonic() - begin < 10 + SLACK
    assert "lost worker_0: its connection was closed" in out
    assert "lost worker_1: it has been silent for too long" in out
    nothing_is_left(nodes, ports)
    assert rows(directory) < 80

    done = fedsim(*DEBUG, f"checkpoint.resume={directory}")  # where it runs may change at a resume
    assert done.code == 0, done.err
    assert model(directory) == model(undisturbed)
    summary, reference = (json.loads((d / "summary.json").read_text()) for d in (directory, undisturbed))
    assert summary["final"] == reference["final"]
    assert summary["config_hash"] == reference["config_hash"]


@pytest.mark.slow
def test_updates_as_they_arrive_through_kill_9_a_stop_ctrl_c_and_resume_then_a_replay(fedsim, tmp_path, start, finish):
    """One of three workers is killed and one stopped, whose clients others train; the replay has the same model."""
    buffered = [*DEBUG[:2], "server.evaluate_every=0", "trainer=serial", "algorithm=fedbuff", "algorithm.buffer_size=2"]
    buffered += ["server.clients_per_round=3"]
    directory, log = tmp_path / "run", tmp_path / "run" / "run.log"
    workers = [*DISTRIBUTED, "transport.timeout=4", "transport.slow_factor=1000"]
    three = ["transport.num_workers=3", "server.num_rounds=100000"]
    first = start(tmp_path, *buffered, *workers, *three, f"hydra.run.dir={directory}")
    wait_for(lambda: rows(directory) >= 5 or first.poll() is not None, "round 5")
    nodes = nodes_of(first)
    for name in ("worker_0", "worker_1"):  # who stands still is given a client soon, and so loses one
        nodes[name].send_signal(signal.SIGSTOP)
    stopped, at = time.monotonic(), rows(directory)
    wait_for(lambda: rows(directory) >= at + 3 or first.poll() is not None, "rounds of the third worker")
    nodes["worker_0"].send_signal(signal.SIGKILL)
    wait_for(lambda: "lost worker_1" in log.read_text() or first.poll() is not None, "the end of worker_1")
    assert time.monotonic() - stopped < 4 + SLACK
    at = rows(directory)
    wait_for(lambda: rows(directory) >= at + 5 or first.poll() is not None, "more rounds")
    ports = listening(psutil.Process(first.pid))
    first.send_signal(signal.SIGINT)
    out = finish(first, 130)
    assert "lost worker_0: its connection was closed" in out
    assert "lost worker_1: it has been silent for too long" in out
    nothing_is_left(nodes, ports)
    done_before = rows(directory)
    assert sum(json.loads(line)["lost"] for line in (directory / "metrics.jsonl").read_text().splitlines()) >= 2

    length = f"server.num_rounds={done_before + 10}"
    resumed = fedsim(*buffered, *workers, "transport.num_workers=2", length, f"checkpoint.resume={directory}")
    assert resumed.code == 0, resumed.err
    replay = fedsim(*buffered, length, f"server.arrivals={directory}/arrivals.csv", directory=tmp_path / "replay")
    assert replay.code == 0, replay.err
    assert model(tmp_path / "replay") == model(directory)
    assert (tmp_path / "replay" / "arrivals.csv").read_bytes() == (directory / "arrivals.csv").read_bytes()


@pytest.mark.slow
def test_a_server_that_is_killed_takes_its_nodes_along(tmp_path, start):
    server = start(tmp_path, *DEBUG, *DISTRIBUTED, "transport.tree={east:1}", f"hydra.run.dir={tmp_path}/run")
    wait_for(lambda: rows(tmp_path / "run") or server.poll() is not None, "round 1")
    nodes = nodes_of(server)
    assert set(nodes) == {"east", "east_0"}
    server.kill()
    server.communicate(timeout=SLACK)
    _, alive = psutil.wait_procs(nodes.values(), timeout=SLACK)
    assert not alive


@pytest.mark.slow
def test_nodes_on_several_machines_survive_a_restart_of_the_server(fedsim, tmp_path, undisturbed, start, finish):
    """The server on 127.0.0.2, a worker that takes its configuration from there and one that states its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        address = f"127.0.0.2:{probe.getsockname()[1]}"
    (tmp_path / "secret").write_text("not on the command line\n")
    common = [f"transport.address={address}", f"transport.secret_file={tmp_path}/secret", "transport.timeout=8"]
    serve = [*DEBUG, "role=server", *common, "transport.join_seconds=180", "transport.num_workers=2"]
    directory = tmp_path / "run"
    server = start(tmp_path, *serve, f"hydra.run.dir={directory}", "checkpoint.every=5")
    workers = [
        start(tmp_path, "role=worker", *common, *more, f"hydra.run.dir={tmp_path}/w{i}")
        for i, more in enumerate([["transport.node=plain"], [*DEBUG, "trainer=serial", "transport.node=stating"]])
    ]
    wrong = fedsim("role=worker", *common, *DEBUG, "seed=5", directory=tmp_path / "w2")
    assert wrong.code == 1
    assert "refused this node: its configuration differs in seed (5 there, 0 here)" in wrong.err
    wait_for(lambda: rows(directory) >= 10 or server.poll() is not None, "round 10")
    server.kill()
    server.communicate(timeout=SLACK)
    done = fedsim(*serve, f"checkpoint.resume={directory}", "checkpoint.every=5")
    assert done.code == 0, done.err
    for worker in workers:
        finish(worker)
    assert model(directory) == model(undisturbed)


@pytest.mark.slow
def test_workers_build_the_trainer_that_a_run_was_begun_with(fedsim, tmp_path):
    """trainer=auto: the choice is in the run's directory; workers take it from the server and measure nothing. They
    send a mean in float32 where the run has one."""
    automatic = [*DEBUG[:2], "server.evaluate_every=0", "checkpoint.every=2", "aggregator.dtype=float32"]

    def run(*arguments, directory=None):
        done = fedsim(*automatic, *arguments, directory=directory)
        assert done.code == 0, done.err

    run("server.num_rounds=2", directory=tmp_path / "alone")
    (tmp_path / "alone" / "trainer.json").write_text('{"num_slots": 2, "num_threads": 1}')
    shutil.copytree(tmp_path / "alone", tmp_path / "apart")
    run("server.num_rounds=4", f"checkpoint.resume={tmp_path}/alone")
    apart = [*DISTRIBUTED, "transport.num_workers=2", f"checkpoint.resume={tmp_path}/apart"]
    run("server.num_rounds=4", *apart)
    for i in range(2):
        printed = (tmp_path / "apart" / "nodes" / f"worker_{i}.log").read_text()
        assert "trains with trainer=vectorized trainer.num_slots=2 with 1 thread (as the server chose)" in printed
    alone, apart = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "apart"))
    assert alone.keys() == apart.keys()
    for name, tensor in alone.items():  # who shares a batch differs, and with it the rounding
        torch.testing.assert_close(apart[name], tensor, atol=1e-6, rtol=1e-5)
    last = json.loads((tmp_path / "apart" / "metrics.jsonl").read_text().splitlines()[-1])
    vector_bytes = sum(4 * tensor.numel() for tensor in alone.values())
    assert all(vector_bytes <= last[f"bytes_up/worker_{i}"] < vector_bytes + 2000 for i in range(2))


@pytest.mark.slow
def test_torchrun_starts_a_server_and_two_workers(tmp_path, undisturbed, start, finish):
    run = start(
        tmp_path, "--standalone", "--nproc-per-node", "3", "-m", "fedsim", *DEBUG, *DISTRIBUTED,
        f"hydra.run.dir={tmp_path}/run", module=("-m", "torch.distributed.run"), FEDSIM_SECRET="0123456789abcdef",
    )  # fmt: skip
    finish(run)
    assert model(tmp_path / "run") == model(undisturbed)
