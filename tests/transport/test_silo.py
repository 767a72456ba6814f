"""Silos of real processes: FedML's Octopus example, two silos of 2 and 1 processes, and the death of one process."""

import signal
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from fedsim.config import LocalConfig, TransportConfig
from fedsim.data.femnist import femnist
from fedsim.initial_model import build_model
from fedsim.models import logistic
from fedsim.train.group import SiloBroken
from fedsim.train.plan import make_plan
from fedsim.transport.place import find_place, find_seat
from fedsim.transport.silo import _Board

# two clients whose minibatches do not divide evenly, and whose last one is smaller; momentum, two epochs
DEBUG = [
    "+experiment=debug", "data.num_clients=2", "server.clients_per_round=2", "server.num_rounds=3",
    "server.evaluate_every=0", "local.batch_size=9", "local.learning_rate=0.01", "local.momentum=0.9",
    "local.num_epochs=2", "evaluate.clients=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, start, finish) -> Path:
    """The model of the same run in one process."""
    directory = tmp_path_factory.mktemp("alone")
    finish(start(directory, *DEBUG, "trainer=serial", f"hydra.run.dir={directory}/run"))
    return directory / "run" / "model.safetensors"


# FedAvg over two clients in plain PyTorch: the first is trained by DistributedDataParallel in two processes, each with
# its half of every minibatch, the second by one model alone. DDP takes the mean over its processes: halves that differ
# by a sample count with their samples.
DATA_PARALLEL = """
    import sys
    import torch
    import torch.distributed as dist
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    assert size == 2
    given = load_file(sys.argv[1])
    x, y = given["x"], given["y"]
    weight, bias = given["weight"], given["bias"]
    model = torch.nn.Linear(784, 62)
    for round in range(1, 4):
        total, samples = [torch.zeros_like(weight), torch.zeros_like(bias)], 0
        for client in (0, 1):
            with torch.no_grad():
                model.weight.copy_(weight), model.bias.copy_(bias)
            replica, parts = (DistributedDataParallel(model), size) if client == 0 else (model, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            for rows, count in zip(given[f"rows/{round}/{client}"], given[f"counts/{round}/{client}"]):
                mine = rows[:count].tensor_split(parts)[rank % parts]
                optimizer.zero_grad()
                loss = cross_entropy(replica(x[mine]), y[mine], reduction="sum") * parts / count
                loss.backward()
                optimizer.step()
            weighs = int(given["sizes"][client])
            total = [t + weighs * p.detach() for t, p in zip(total, (model.weight, model.bias))]
            samples += weighs
        weight, bias = (t / samples for t in total)
    if rank == 0:
        save_file({"head.weight": weight, "head.bias": bias}, sys.argv[2])
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory: pytest.TempPathFactory, start, finish) -> Path:
    """The model of DATA_PARALLEL, on the data, the minibatches and from the model of that run."""
    directory = tmp_path_factory.mktemp("data_parallel")
    dataset = femnist(num_clients=2)
    model = build_model(dataset, logistic, seed=0, device="cpu")
    begin = model.state_dict(model.vector)
    given = {"weight": begin["head.weight"], "bias": begin["head.bias"]}
    given |= {"x": dataset.preprocess(torch.as_tensor(dataset.train.inputs)).flatten(1)}
    given |= {"y": torch.as_tensor(dataset.train.targets), "sizes": torch.tensor(dataset.train.sizes)}
    for round in (1, 2, 3):
        for client in (0, 1):
            local = LocalConfig(num_epochs=2, batch_size=9)
            plan = make_plan(dataset.train, np.array([client]), local, seed=0, round=round)
            given[f"rows/{round}/{client}"] = torch.from_numpy(plan.rows[:, 0].copy())
            given[f"counts/{round}/{client}"] = torch.from_numpy(plan.counts[:, 0].copy())
    save_file(given, directory / "given.safetensors")
    (directory / "loop.py").write_text(textwrap.dedent(DATA_PARALLEL))
    files = [str(directory / name) for name in ("loop.py", "given.safetensors", "model.safetensors")]
    finish(start(directory, "--standalone", "--nproc-per-node", "2", *files, module=("-m", "torch.distributed.run")))
    return directory / "model.safetensors"


def assert_equal(model: Path, reference: Path) -> None:
    ours, theirs = load_file(model), load_file(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_two_silos_of_2_and_1_processes_end_in_the_model_of_one_process_and_of_data_parallel_pytorch(
    tmp_path, alone, data_parallel, page_commands, start, finish, secret
):
    """The page's commands: one is started by torchrun, the other by itself; both train."""
    serve, torchrun, single = page_commands("Silos")
    assert torchrun[0] == "torchrun"
    server = start(tmp_path, *serve[3:], *DEBUG[1:], "transport.slow_factor=1000", f"hydra.run.dir={tmp_path}/run")
    large = start(
        tmp_path, *torchrun[1:], "transport.node=large", f"hydra.run.dir={tmp_path}/large",
        module=("-m", "torch.distributed.run"),
    )  # fmt: skip
    small = start(tmp_path, *single[3:], "transport.node=small", f"hydra.run.dir={tmp_path}/small")
    out = finish(server)
    finish(large), finish(small)
    assert_equal(tmp_path / "run" / "model.safetensors", alone)
    assert_equal(tmp_path / "run" / "model.safetensors", data_parallel)
    assert "large joined" in out
    assert "small joined" in out
    assert "trains" not in out.split("joined", 1)[1], "no other node has trained for them"
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    for name in ("large", "small"):
        assert any(int(float(row.split(",")[columns.index(f"bytes_up/{name}")] or 0)) > 4000 for row in rows)


def wait_for_two_rounds(server, directory):
    metrics, deadline = directory / "metrics.jsonl", time.monotonic() + 400
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert server.poll() is None, server.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_process_that_is_stopped_ends_its_silo_and_the_run_goes_on(tmp_path, alone, start, finish, secret):
    """The only worker is a silo of two, started with the run; its second process is stopped for ever."""
    directory = tmp_path / "run"
    server = start(
        tmp_path, *DEBUG, "trainer=silo", "trainer.num_processes=2", "trainer.timeout=3", "transport=torch_distributed",
        "transport.num_workers=1", "transport.slow_factor=1000", f"hydra.run.dir={directory}",
        "server.num_rounds=80", "checkpoint.every=0",
    )  # fmt: skip
    wait_for_two_rounds(server, directory)
    (worker,) = psutil.Process(server.pid).children()
    (member,) = worker.children()
    member.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - begin < 60, "the silo did not end"
        time.sleep(0.02)
    out = finish(server)
    assert "lost worker_0: a process of this silo does not answer" in out
    assert "the server trains" in out
    assert not member.is_running() or member.status() == psutil.STATUS_ZOMBIE  # dead, if nobody has asked for it yet
    reference = start(tmp_path, *DEBUG, "trainer=serial", "server.num_rounds=80", f"hydra.run.dir={tmp_path}/alone")
    finish(reference)
    ours, theirs = load_file(directory / "model.safetensors"), load_file(tmp_path / "alone" / "model.safetensors")
    for name, tensor in theirs.items():  # rounding of the first rounds, after 80
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_silo_that_lost_a_process_joins_again_when_it_is_started_again(tmp_path, start, finish, secret, free_address):
    """One of two processes is killed. The silo has data of its own, so that the server has to wait for it."""
    settings = [word for word in DEBUG[2:] if not word.startswith("server.num_rounds")]
    settings += ["server.num_rounds=40", "model=logistic"]
    data, directory = ["data=femnist_small", "data.num_clients=2"], tmp_path / "run"
    address = f"transport.address={free_address}"
    server = start(
        tmp_path, *settings, "trainer=serial", "role=server", "data=remote", "data.input_shape=[1,28,28]",
        "data.num_classes=62", address, "transport.num_workers=1", f"hydra.run.dir={directory}",
    )  # fmt: skip
    silo = ["role=worker", *data, "trainer=silo", "trainer.num_processes=2", "transport.node=silo", address]
    worker = start(tmp_path, *silo, f"hydra.run.dir={tmp_path}/silo")
    wait_for_two_rounds(server, directory)
    (member,) = psutil.Process(worker.pid).children()
    member.kill()
    told = "a process of this silo is gone: it trains no more; start it again, and it joins again"
    said = finish(worker, 1)
    assert said.splitlines()[-1] == f"fedsim: error: {told}", said
    again = start(tmp_path, *silo, f"hydra.run.dir={tmp_path}/again")
    out = finish(server)
    finish(again)
    assert f"lost silo: {told}" in out
    assert out.count("silo joined") == 2
    finish(start(tmp_path, *settings, *data, "trainer=serial", f"hydra.run.dir={tmp_path}/alone"))
    ours, theirs = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "alone"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=0)


def test_which_process_of_a_silo_this_is():
    env = {
        "TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29500",
    }  # fmt: skip
    joins = TransportConfig(address="10.0.0.1:5000")
    member = find_place("worker", joins, env, silo=True)
    assert (member.role, member.local_rank) == ("member", 1)
    assert member.seat is not None
    assert (member.seat.rank, member.seat.size, member.seat.address) == (3, 4, "10.0.0.5:29500")
    assert not member.seat.alone
    first = find_place("worker", joins, {**env, "RANK": "0"}, silo=True)
    assert first.role == "worker"
    assert first.seat is not None
    assert find_place("worker", joins, env).role == "worker"
    assert find_place("local", TransportConfig(), env, silo=True).role == "member"
    assert find_place("local", TransportConfig(), {}, silo=True).seat is None
    assert find_seat(first.seat.other(2)) == find_seat({**env, "RANK": "2", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"})


def test_notes_between_processes_are_signed():
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    ours, stranger = _Board(store, b"0" * 16, "run"), _Board(store, b"1" * 16, "run")
    ours.leave("config", {"config": {"seed": 1}})
    assert ours.find("config") == {"config": {"seed": 1}, "key": "config"}
    assert stranger.find("config") is None
    forged = ours.store.get("config").replace(b'"seed": 1', b'"seed": 2')
    ours.store.set("config", forged)
    with pytest.raises(SiloBroken, match="not signed"):
        ours.find("config")
    ours.leave("other", {})
    ours.store.set("config", ours.store.get("other"))
    with pytest.raises(SiloBroken, match="not what it was signed for"):
        ours.find("config")
