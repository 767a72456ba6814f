"""The asynchronous server against plain loops, in its degenerate settings, and after kill -9."""

import heapq
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim as package
from fedsim.aggregate import OnlineAverage
from fedsim.algorithms import fedasync, fedavg, fedbuff, fedprox
from fedsim.config import CheckpointConfig, LocalConfig, ScheduleConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.devices import Devices, drawn
from fedsim.models import logistic
from fedsim.recording import record
from fedsim.simulation import Simulation
from fedsim.train.calibrate import Auto
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [7, 12, 9, 20, 4]
SPEEDS = [1.0, 1.13, 0.97, 1.31, 0.83]  # samples a second: no two clients ever arrive at one instant
LOCAL = LocalConfig(num_steps=3, batch_size=None, learning_rate=0.2)


def float64(shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    return logistic(shape, num_classes).double()


def in_float64(dataset: FederatedDataset) -> FederatedDataset:
    train, test = (replace(s, inputs=s.inputs.double()) for s in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)


def uneven(num_clients: int, client_ids, seed: int) -> Devices:
    return replace(drawn(num_clients, client_ids, seed), samples_per_second=np.array(SPEEDS))


def simulation(dataset, algorithm, *, clients_per_round: int, devices=None, rounds: int = 1, **settings) -> Simulation:
    devices = devices or partial(drawn, samples_per_second=1.0)
    server = ServerConfig(num_rounds=rounds, clients_per_round=clients_per_round, evaluate_every=0)
    settings = {"local": LOCAL, "device": "cpu", "server": server, "trainer": SerialTrainer, **settings}
    model = settings.pop("model", logistic if dataset.train.inputs.dtype == torch.float32 else float64)
    return Simulation(dataset, model, algorithm=algorithm, devices=devices, **settings)


def trained(start: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Three full-batch steps of gradient descent on a linear model [weight (4, 12) | bias (4,)], from `start`."""
    vector = start.clone().requires_grad_()
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(inputs @ vector[:48].view(4, 12).T + vector[48:], targets)
        (gradient,) = torch.autograd.grad(loss, vector)
        vector = (vector - 0.2 * gradient).detach().requires_grad_()
    return vector.detach()


def textbook(dataset, vector: Tensor, step, *, buffer_size: int, num_steps: int) -> tuple[Tensor, float]:
    """A loop over arrivals; a client computes each of its samples three times, and starts again with the newest
    model as soon as there is one that it has not trained from. `step(vector, buffer, version)` is the server's."""
    offsets, version, buffer, waiting = dataset.train.offsets, 0, [], []
    heap = [(3 * SIZES[c] / SPEEDS[c], c, vector, 0) for c in range(5)]
    heapq.heapify(heap)
    now = 0.0
    while version < num_steps:
        now, client, start, old = heapq.heappop(heap)
        own = slice(offsets[client], offsets[client + 1])
        local = trained(start, dataset.train.inputs[own], dataset.train.targets[own])
        buffer.append((SIZES[client], old, start, local))
        starting = []
        if len(buffer) == buffer_size:
            vector, version, buffer = step(vector, buffer, version), version + 1, []
            starting, waiting = [*waiting, client], []
        elif old == version:
            waiting.append(client)
        else:
            starting = [client]
        for c in starting:
            heapq.heappush(heap, (now + 3 * SIZES[c] / SPEEDS[c], c, vector, version))
    return vector, now


TRAINERS = [SerialTrainer, partial(VectorizedTrainer, num_slots=3)]


@pytest.mark.parametrize("trainer", TRAINERS, ids=["serial", "vectorized"])
@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
def test_fedasync_equals_the_textbook_loop(make_dataset, trainer, staleness):
    """w <- (1 - a_t) w + a_t w_client, a_t = 0.6 s(t - tau)."""
    dataset = in_float64(make_dataset(SIZES))
    factor = {
        "constant": lambda s: 1.0,
        "polynomial": lambda s: (1 + s) ** -0.7,
        "hinge": lambda s: 1.0 if s <= 2 else 1 / (3 * (s - 2) + 1),
    }[staleness]
    seen = []

    def step(vector, buffer, version):
        ((_, old, _, local),) = buffer
        seen.append(version - old)
        share = 0.6 * factor(version - old)
        return (1 - share) * vector + share * local

    run = simulation(
        dataset,
        fedasync(0.6, staleness, exponent=0.7, slope=3.0, delay=2.0),
        clients_per_round=5,
        devices=uneven,
        trainer=trainer,
    )
    expected, seconds = textbook(dataset, run.server.vector.clone(), step, buffer_size=1, num_steps=14)
    metrics = [run.server.run_round() for _ in range(14)]
    torch.testing.assert_close(run.server.vector, expected, rtol=1e-10, atol=1e-10)
    assert [m["staleness_max"] for m in metrics] == seen
    assert max(seen) > 3
    assert metrics[-1]["virtual_seconds"] == seconds


@pytest.mark.parametrize("trainer", TRAINERS, ids=["serial", "vectorized"])
@pytest.mark.parametrize(("buffer_size", "weighted"), [(1, True), (2, True), (3, True), (3, False), (5, True)])
def test_fedbuff_equals_the_textbook_loop(make_dataset, trainer, buffer_size, weighted):
    """w <- w + eta sum of n_i (1 + s_i)^-1/2 (w_i - start_i) / sum of n_i; not weighted, n_i = 1."""
    dataset, seen = in_float64(make_dataset(SIZES)), []

    def step(vector, buffer, version):
        buffer = [(size if weighted else 1, *rest) for size, *rest in buffer]
        total = sum(size for size, *_ in buffer)
        seen.append([version - old for _, old, _, _ in buffer])
        for size, old, start, local in buffer:
            vector = vector + 0.8 * size / total * (1 + version - old) ** -0.5 * (local - start)
        return vector

    algorithm = fedbuff(buffer_size, server_learning_rate=0.8, weighted=weighted)
    run = simulation(dataset, algorithm, clients_per_round=5, devices=uneven, trainer=trainer)
    expected, seconds = textbook(dataset, run.server.vector.clone(), step, buffer_size=buffer_size, num_steps=10)
    metrics = [run.server.run_round() for _ in range(10)]
    torch.testing.assert_close(run.server.vector, expected, rtol=1e-10, atol=1e-10)
    assert [m["staleness_mean"] for m in metrics] == pytest.approx([np.mean(s) for s in seen])
    assert metrics[-1]["virtual_seconds"] == seconds


def vectors(run: Simulation, num_rounds: int) -> list[Tensor]:
    found = []
    for _ in range(num_rounds):
        run.server.run_round()
        found.append(run.server.vector.clone())
    return found


@pytest.mark.parametrize("cohort", [3, 5])
def test_a_buffer_of_a_whole_cohort_on_equal_devices_is_fedavg_bit_for_bit(make_dataset, cohort):
    """Everybody computes in no time and sends for one second: a cohort arrives at one instant."""
    devices = partial(drawn, latency=0.5)
    settings = {"clients_per_round": cohort, "devices": devices, "local": LocalConfig(batch_size=5)}
    buffered = simulation(make_dataset(SIZES), fedbuff(cohort), **settings)
    rounds = simulation(make_dataset(SIZES), fedavg(), **settings)
    for one, other in zip(vectors(buffered, 4), vectors(rounds, 4), strict=True):
        assert torch.equal(one, other)
    assert buffered.server.clock.seconds == rounds.server.clock.seconds == 4.0


@pytest.mark.parametrize("staleness", ["constant", "polynomial", "hinge"])
def test_one_client_at_a_time_is_never_stale_and_fedasync_without_mixing_is_fedavg(make_dataset, staleness):
    settings = {"clients_per_round": 1, "local": LocalConfig(batch_size=5)}
    mixed = simulation(make_dataset(SIZES), fedasync(1.0, staleness), **settings)
    rounds = simulation(make_dataset(SIZES), fedavg(), **settings)
    for one, other in zip(vectors(mixed, 5), vectors(rounds, 5), strict=True):
        assert torch.equal(one, other)


def test_fedasync_keeps_clients_near_where_they_started(make_dataset):
    """One client at a time, wholly taken over: that is FedProx with one client a round."""
    settings = {"clients_per_round": 1, "local": LocalConfig(batch_size=5)}
    near = simulation(make_dataset(SIZES), fedasync(1.0, proximal_weight=0.5), **settings)
    rounds = simulation(make_dataset(SIZES), fedprox(0.5), **settings)
    free = simulation(make_dataset(SIZES), fedasync(1.0), **settings)
    assert torch.equal(vectors(near, 3)[-1], (expected := vectors(rounds, 3)[-1]))
    assert not torch.allclose(vectors(free, 3)[-1], expected)


def test_the_servers_learning_rate_follows_its_schedule(make_dataset):
    settings = {"clients_per_round": 3, "devices": partial(drawn, latency=0.5)}
    halved = {"server": ServerConfig(clients_per_round=3, schedule=ScheduleConfig(kind="step", factor=0.5, every=1))}
    buffered = simulation(make_dataset(SIZES), fedbuff(3), **settings, **halved)
    rounds = simulation(make_dataset(SIZES), fedavg(), **settings, **halved)
    torch.testing.assert_close(vectors(buffered, 4)[-1], vectors(rounds, 4)[-1])


class Alone:
    """A transport that trains each client of a job in a job of its own, and remembers the jobs it was given."""

    def __init__(self, transport) -> None:
        self.transport, self.given = transport, []

    def run_round(self, job):
        self.given.append(job.cohort.tolist())
        average, sums = OnlineAverage(len(job.broadcast), scale=job.scale), {}
        for client in job.cohort:
            part = self.transport.run_round(type(job)(**{**vars(job), "cohort": np.array([client])}))
            average.merge(part)
            sums = {name: sums.get(name, 0.0) + value for name, value in part.metrics.items()}
        return average.result(sums)


def test_clients_of_one_version_train_together_and_it_changes_nothing(make_dataset):
    devices = partial(drawn, samples_per_second=1.0, jitter=0.5)
    settings = {"clients_per_round": 6, "devices": devices, "local": LocalConfig(batch_size=4)}
    together, alone = (simulation(make_dataset([8] * 9), fedbuff(4), **settings) for _ in range(2))
    alone.server.transport = Alone(alone.server.transport)
    for one, other in zip(vectors(together, 6), vectors(alone, 6), strict=True):
        assert torch.equal(one, other)
    jobs = alone.server.transport.given
    assert len(jobs[0]) == 4, "the first four to arrive all started from version 0"
    assert sum(map(len, jobs)) == 24
    assert 6 < len(jobs) < 24


def test_a_trainer_can_be_chosen_by_measuring(make_dataset):
    """Which trains the first round's largest job on trial, and leaves no trace in the run."""
    settings = {"clients_per_round": 4, "devices": uneven}
    chosen = simulation(in_float64(make_dataset(SIZES)), fedbuff(2), trainer=Auto(), **settings)
    serial = simulation(in_float64(make_dataset(SIZES)), fedbuff(2), **settings)
    torch.testing.assert_close(vectors(chosen, 4)[-1], vectors(serial, 4)[-1])


def test_a_version_is_kept_as_long_as_somebody_works_on_it(make_dataset):
    run = simulation(make_dataset(SIZES), fedasync(), clients_per_round=5)
    for _ in range(25):
        run.server.run_round()
        kept = set(run.server.versions.written.tolist())
        assert kept == run.server.clock.queue.versions() - {run.server.round}
    assert len(kept) <= 4


def test_after_an_error_nothing_has_moved(make_dataset):
    run = simulation(make_dataset(SIZES), fedbuff(2), clients_per_round=3)
    run.server.run_round()
    vector, clock = run.server.vector.clone(), run.server.clock.state_dict()
    transport = run.server.transport
    run.server.transport = Alone(None)  # fails while it trains
    with pytest.raises(AttributeError):
        run.server.run_round()
    assert torch.equal(run.server.vector, vector)
    assert all(torch.equal(clock[name], t) for name, t in run.server.clock.state_dict().items())
    run.server.transport = transport
    again = simulation(make_dataset(SIZES), fedbuff(2), clients_per_round=3)
    assert torch.equal(vectors(again, 3)[-1], vectors(run, 2)[-1])


def test_a_client_that_is_not_finite_is_named(make_dataset):
    run = simulation(make_dataset(SIZES), fedasync(), clients_per_round=3, local=LocalConfig(learning_rate=1e30))
    with pytest.raises(ValueError, match=r"client_\d\) is not finite: lower local\.learning_rate"):
        vectors(run, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": fedbuff(6), "clients_per_round": 3}, "buffer_size=6, but 5 clients have training samples"),
        (
            {"algorithm": fedasync(), "clients_per_round": 3, "sampler": lambda n, m: None},
            "algorithm=fedasync draws clients as places fall free: set sampler=uniform",
        ),
        (
            {"algorithm": replace(fedbuff(2), name="mine", prelude=fedavg()), "clients_per_round": 3},
            "algorithm=mine exchanges more than models and updates",
        ),
        ({"algorithm": fedbuff(2), "clients_per_round": 6}, "there are 5 clients: choose 1 to 5"),
    ],
)
def test_impossible_settings_are_refused(make_dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        simulation(make_dataset(SIZES), **settings)


MEASURED = ("seconds", "evaluate_seconds", "peak_memory_bytes")


def metrics(directory: Path) -> list[dict]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


@pytest.mark.parametrize("algorithm", [fedavg(), fedbuff(3), fedasync()], ids=lambda a: a.name)
def test_a_resumed_run_ends_bit_for_bit_as_the_unbroken_one(make_dataset, tmp_path, algorithm):
    """The run stops at round 8, two after its last checkpoint; with clients at work, some of them lost later."""
    devices = partial(drawn, samples_per_second=5.0, jitter=0.5, dropout=0.2, availability=0.8, latency=0.1)
    settings = {"clients_per_round": 4, "devices": devices, "local": LocalConfig(batch_size=4)}
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"

    def run(directory: Path, rounds: int, **checkpoint) -> Simulation:
        made = simulation(make_dataset([9] * 7), algorithm, rounds=rounds, **settings)
        record(made, directory, config={"a": 1}, checkpoint=CheckpointConfig(**checkpoint))
        return made

    whole = run(unbroken, 12, every=0)
    stopped = simulation(make_dataset([9] * 7), algorithm, rounds=12, **settings)
    run_round, stopped.server.run_round = stopped.server.run_round, lambda: stop_after(8)

    def stop_after(last: int):
        if stopped.server.round == last:
            raise RuntimeError("killed")
        return run_round()

    with pytest.raises(RuntimeError, match="killed"):
        record(stopped, broken, config={"a": 1}, checkpoint=CheckpointConfig(every=3))
    resumed = run(broken, 12, every=5, resume=str(broken))
    assert torch.equal(resumed.server.vector, whole.server.vector)
    assert metrics(broken) == metrics(unbroken)
    assert resumed.server.clock.seconds == whole.server.clock.seconds > 0


def test_kill_9_and_resume_with_clients_at_work(fedsim, tmp_path):
    arguments = ["+experiment=debug", "data.num_clients=8", "devices=phones", "algorithm=fedbuff"]
    arguments += ["algorithm.buffer_size=3", "trainer=serial", "server.num_rounds=30", "evaluate.clients=false"]
    unbroken = fedsim(*arguments, directory=tmp_path / "unbroken")
    assert unbroken.code == 0, unbroken.err
    broken = tmp_path / "broken"
    path = os.pathsep.join(filter(None, [str(Path(package.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "fedsim", *arguments, f"hydra.run.dir={broken}", "checkpoint.every=4"]
    victim = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    file, deadline = broken / "metrics.jsonl", time.monotonic() + 120
    while not (file.exists() and file.read_text().count("\n") >= 6) and time.monotonic() < deadline:
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    assert not (broken / "model.safetensors").exists(), "it ended before it was killed"
    resumed = fedsim(*arguments, "checkpoint.every=4", f"checkpoint.resume={broken}")
    assert resumed.code == 0, resumed.err
    left = [directory / "model.safetensors" for directory in (broken, unbroken.directory)]
    assert left[0].read_bytes() == left[1].read_bytes()
    assert metrics(broken) == metrics(unbroken.directory)
    summary = json.loads((broken / "summary.json").read_text())
    assert summary["to_accuracy"]["0.1"]["virtual_seconds"] > 0
    assert summary["client_state"]["versions"]["clients"] <= 5
