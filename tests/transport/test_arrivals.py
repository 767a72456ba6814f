"""Asynchronous servers over real links: the model of a plain loop over the order of the updates, whoever dies."""

import csv
import random
import threading
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsim import Simulation
from fedsim.algorithms import fedasync, fedavg, fedbuff
from fedsim.arrivals.recorded import read_arrivals
from fedsim.config import CheckpointConfig, LocalConfig, ServerConfig, TrackingConfig
from fedsim.devices import drawn
from fedsim.models import logistic
from fedsim.recording import record
from fedsim.tracking.readback import read_metrics
from fedsim.train.serial import SerialTrainer
from fedsim.transport.join import Refused


class Through:
    """A worker's transport that does something before it trains each client."""

    def __init__(self, own, before):
        self.own, self.before = own, before

    def run_round(self, job):
        self.before(job)
        return self.own.run_round(job)

    def close(self):
        self.own.close()


def unlike(seed: int):
    """Workers that take a random time for each client."""
    rng = random.Random(seed)
    return lambda own: Through(own, lambda job: time.sleep(rng.random() * 0.03))


def recorded(net, simulation: Simulation, directory: Path, **checkpoint) -> Tensor:
    net.stars[-1].gather()
    try:
        record(
            simulation,
            directory,
            config={"a": 1},
            tracking=TrackingConfig(progress=False),
            checkpoint=CheckpointConfig(**checkpoint),
        )
    finally:
        simulation.close()
    return simulation.server.vector


def order(directory: Path) -> dict[int, list[tuple[int, int, str]]]:
    """(client, version, worker) of the updates of each round."""
    found = defaultdict(list)
    with (directory / "arrivals.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[int(row["round"])].append((int(row["client"]), int(row["version"]), row["worker"]))
    return dict(found)


def replayed(net, directory: Path, rounds: int) -> Tensor:
    """The final vector of a run in one process that follows a record."""
    return net.reference(num_rounds=rounds, arrivals=str(directory / "arrivals.csv"))


def in_float64(make_dataset):
    def make(sizes):
        dataset = make_dataset(sizes)
        train, test = (replace(s, inputs=s.inputs.double()) for s in (dataset.train, dataset.test))
        return replace(dataset, train=train, test=test)

    return make


def textbook(dataset, vector: Tensor, updates: dict[int, list[tuple[int, int, str]]], step) -> Tensor:
    """Plain gradient descent of a linear model [weight (4, 12) | bias (4,)], update by update in their order."""
    models, offsets = [vector], dataset.train.offsets
    for round in sorted(updates):
        buffer = []
        for client, version, _ in updates[round]:
            own = slice(offsets[client], offsets[client + 1])
            inputs, targets, local = dataset.train.inputs[own], dataset.train.targets[own], models[version].clone()
            for _ in range(3):
                local.requires_grad_()
                logits = inputs @ local[:48].view(4, 12).T + local[48:]
                (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), local)
                local = (local - 0.2 * gradient).detach()
            buffer.append((len(targets), round - 1 - version, local, models[version]))
        models.append(step(models[-1], buffer))
    return models[-1]


def mixed(vector, buffer):
    """w <- (1 - a_s) w + a_s w_client, a_s = 0.6 (s + 1)^-1/2."""
    ((_, stale, local, _),) = buffer
    share = 0.6 * (stale + 1) ** -0.5
    return (1 - share) * vector + share * local


def buffered(vector, buffer):
    """w <- w + sum of n_i (1 + s_i)^-1/2 (w_i - start_i) / sum of n_i."""
    total = sum(size for size, *_ in buffer)
    return vector + sum(size / total * (1 + stale) ** -0.5 * (local - start) for size, stale, local, start in buffer)


@pytest.mark.parametrize(("algorithm", "step"), [(fedasync, mixed), (partial(fedbuff, 3), buffered)])
def test_three_workers_end_where_a_plain_loop_over_their_order_ends(net, make_dataset, tmp_path, algorithm, step):
    net.make_dataset, net.algorithm = in_float64(make_dataset), algorithm
    net.model = lambda shape, classes: logistic(shape, classes).double()
    net.local = LocalConfig(num_steps=3, batch_size=None, learning_rate=0.2)
    simulation = net.simulation(net.star, num_rounds=12, clients_per_round=3)
    net.expected = 3
    for seed in range(3):
        net.worker(net.stars[0].address, wrap=unlike(seed))
    simulation.own.run_round = None  # the server itself trains nothing
    start = simulation.server.vector.clone()
    vector = recorded(net, simulation, tmp_path)
    updates = order(tmp_path)
    assert list(updates) == list(range(1, 13))
    expected = textbook(simulation.dataset, start, updates, step)
    torch.testing.assert_close(vector, expected, rtol=1e-10, atol=1e-10)
    stale = [round - 1 - version for round, arrived in updates.items() for _, version, _ in arrived]
    assert max(stale) > 0
    assert {worker for arrived in updates.values() for *_, worker in arrived} == {"w0", "w1", "w2"}
    rows = read_metrics(tmp_path)
    assert sum(row["staleness_mean"] * len(updates[1]) for row in rows) == pytest.approx(sum(stale))
    seconds = [row["wall_seconds"] for row in rows]
    assert seconds == sorted(seconds)
    by_one = [worker for arrived in updates.values() for *_, worker in arrived].count("w0")
    assert sum(row["bytes_up/w0"] for row in rows) >= by_one * 8 * len(vector)
    assert torch.equal(replayed(net, tmp_path, 12), vector)


def without_empty(make_dataset):
    return lambda sizes: make_dataset([max(size, 4) for size in sizes])


@pytest.mark.parametrize("algorithm", [fedasync, partial(fedbuff, 3)])
def test_one_client_at_a_time_is_the_run_in_virtual_time_bit_for_bit(net, make_dataset, algorithm):
    net.make_dataset, net.algorithm, net.expected = without_empty(make_dataset), algorithm, 1
    simulation = net.simulation(net.star, num_rounds=5, clients_per_round=1)
    net.worker(net.stars[0].address)
    virtual = Simulation(
        simulation.dataset,
        logistic,
        algorithm=algorithm(),
        local=net.local,
        server=simulation.config,
        devices=partial(drawn, samples_per_second=1.0),
        trainer=SerialTrainer,
        device="cpu",
    )
    rows = list(virtual.rounds())
    measured = []
    assert torch.equal(net.run(simulation, measured.append, whole=True), virtual.server.vector)
    for name in ("train_loss", "staleness_mean", "bytes_up"):
        assert [row[name] for row in measured] == [row[name] for row in rows]


@pytest.mark.parametrize("algorithm", [partial(fedasync, 1.0), partial(fedbuff, 1)])
def test_one_client_at_a_time_is_fedavg_of_one_client_bit_for_bit(net, make_dataset, algorithm):
    net.make_dataset, net.algorithm, net.expected = without_empty(make_dataset), algorithm, 1
    simulation = net.simulation(net.star, num_rounds=6, clients_per_round=1)
    net.worker(net.stars[0].address)
    vector = net.run(simulation)
    net.algorithm = fedavg
    assert torch.equal(vector, net.reference(num_rounds=6, clients_per_round=1))


def test_a_client_whose_worker_loses_its_link_goes_to_another_with_the_same_model(net, tmp_path):
    net.algorithm = partial(fedbuff, 2)
    simulation = net.simulation(net.star, num_rounds=10, clients_per_round=3)
    net.expected = 3
    lost, nodes = [], []

    def cut(job):
        if job.round >= 3 and not lost:
            lost.append((int(job.cohort[0]), job.round - 1))
            nodes[0].link.abort()
            nodes[0].join_seconds, nodes[0].first = 0.1, ["127.0.0.1:1"]  # and leaves for good

    nodes.append(net.worker(net.stars[0].address, wrap=lambda own: Through(own, cut)))
    for seed in range(2):
        net.worker(net.stars[0].address, wrap=unlike(seed))
    vector = recorded(net, simulation, tmp_path)
    workers = {(client, version): who for arrived in order(tmp_path).values() for client, version, who in arrived}
    assert workers[lost[0]] in ("w1", "w2")
    assert sum(row["lost"] for row in read_metrics(tmp_path)) == 1
    assert torch.equal(replayed(net, tmp_path, 10), vector)


@pytest.mark.parametrize("others", [0, 1])
def test_a_client_that_hangs_is_trained_by_somebody_else(net, others):
    """A worker that still beats but does not come back is overtaken after slow_factor times the usual time, and at
    least a second; by the server, if there is no other."""
    net.algorithm, net.settings = fedasync, {"slow_factor": 1.5}
    simulation = net.simulation(net.star, num_rounds=100_000, clients_per_round=3)
    net.expected = 1 + others
    wake, hung = threading.Event(), []

    def hang(job):
        if job.round >= 4 and not hung:
            hung.append((int(job.cohort[0]), job.round - 1))
            assert wake.wait(600)

    net.worker(net.stars[0].address, wrap=lambda own: Through(own, hang))
    for _ in range(others):
        net.worker(net.stars[0].address, wrap=lambda own: Through(own, lambda job: time.sleep(0.01)))
    net.stars[0].gather()
    begin = time.monotonic()
    try:
        arrived = (simulation.server.arrived[0] for _ in simulation.rounds())
        row = next(row for row in arrived if hung and (row["client"], row["version"]) == hung[0])
        assert row["worker"] == ("w1" if others else "server")
        assert time.monotonic() - begin > 1
    finally:
        wake.set()
        simulation.close()
    assert time.monotonic() - begin < 300


def test_without_workers_the_server_trains_and_late_ones_take_part(net, eventually, caplog):
    net.algorithm = fedasync
    simulation = net.simulation(net.star, num_rounds=8, clients_per_round=2)
    star, who = net.stars[0], []

    def between(round):
        who.append(simulation.server.arrived[0]["worker"])
        if round == 3:
            net.worker(star.address)
            eventually(lambda: not star.events.empty())

    net.run(simulation, between)
    assert who[:3] == ["server"] * 3
    assert "w0" in who[4:]
    told = [record.message for record in caplog.records if "itself" in record.message]
    assert told == ["no worker is left, the server trains clients itself"]


def test_an_interrupted_run_goes_on_with_the_clients_that_were_at_work(net, tmp_path):
    """Ctrl-C with two updates of a buffer of three: they and those at work are trained again from their models."""
    net.algorithm, net.expected = partial(fedbuff, 3), 2
    broken = net.simulation(net.star, num_rounds=9, clients_per_round=2)
    for seed in range(2):
        net.worker(net.stars[0].address, wrap=unlike(seed))
    take, clock = broken.transport.next, broken.server.clock

    def interrupt(make_job):
        if broken.server.round == 5 and len(clock.found) == 2:
            raise KeyboardInterrupt
        return take(make_job)

    broken.transport.next = interrupt
    with pytest.raises(KeyboardInterrupt):
        recorded(net, broken, tmp_path, every=100)
    waiting = {(client, version) for client, version in clock.state_dict()["at_work"].tolist()}
    assert len(waiting) >= 3
    assert list(order(tmp_path)) == [1, 2, 3, 4, 5]

    resumed = net.simulation(net.star, num_rounds=9, clients_per_round=2)
    for seed in range(2, 4):
        net.worker(net.stars[1].address, wrap=unlike(seed))
    vector = recorded(net, resumed, tmp_path, every=100, resume=str(tmp_path))
    updates = order(tmp_path)
    assert list(updates) == list(range(1, 10))
    arrived = [(client, version) for round in updates if round > 5 for client, version, _ in updates[round]]
    assert waiting <= {*arrived, *resumed.server.clock.at_work}
    assert len(arrived) == len(set(arrived)) == 12
    assert torch.equal(replayed(net, tmp_path, 9), vector)
    seconds = [row["wall_seconds"] for row in read_metrics(tmp_path)]
    assert seconds == sorted(seconds)


def test_a_client_that_is_not_finite_ends_the_run_as_in_one_process(net):
    net.algorithm, net.expected = fedasync, 2
    simulation = net.simulation(net.star, clients_per_round=2)
    for _ in range(2):
        net.worker(net.stars[0].address)
    simulation.server.vector.fill_(1e38)
    with pytest.raises(ValueError, match=r"round \d: the (loss|update) of client \d+ \(client_\d+\) is not finite"):
        net.run(simulation)


def test_a_client_that_fails_everywhere_ends_the_run_with_its_error(net, failing):
    net.algorithm, net.expected = fedasync, 2
    simulation = net.simulation(net.star, clients_per_round=2)
    fail = failing(lambda: net.stars[0])
    for _ in range(2):
        net.worker(net.stars[0].address, wrap=lambda own: Through(own, fail))

    def here(job):
        raise RuntimeError("it is broken here too")

    simulation.transport.own.run_round = here
    with pytest.raises(RuntimeError, match="it is broken here too"):
        net.run(simulation)


def test_an_answer_that_is_no_update_ends_a_link_and_not_the_run(net, caplog):
    net.algorithm, net.expected = fedasync, 2
    simulation = net.simulation(net.star, num_rounds=6, clients_per_round=2)

    class Short(Through):
        def run_round(self, job):
            done = super().run_round(job)
            return replace(done, total=done.total[:-1])

    net.worker(net.stars[0].address, wrap=lambda own: Short(own, lambda job: None), join_seconds=0.5)
    net.worker(net.stars[0].address)
    net.run(simulation)
    assert "lost w0: it sent an average of another model" in caplog.text


def test_a_scheduler_is_refused_with_the_reason(net, eventually):
    net.algorithm, net.expected = fedasync, 1
    net.settings = {"refuses_schedulers": "it sends sums"}
    simulation = net.simulation(net.star, clients_per_round=1)
    net.scheduler(net.stars[0].address)
    eventually(lambda: net.errors)
    assert isinstance(net.errors[0], Refused)
    assert "refused this node: it sends sums" in str(net.errors[0])
    net.worker(net.stars[0].address)
    net.run(simulation)


HEADER = "round,client,version,worker,seconds,training_seconds\n"
RECORDS = {
    "another file": ("a,b\n1,2\n", "is not an arrivals.csv of fedsim"),
    "not numbers": (HEADER + "1,x,0,w,1,1\n", "is not an arrivals.csv of fedsim"),
    "another buffer": (HEADER + "1,0,0,w,1,1\n", "has 1 updates of round 1 where 2 of round 1 are due"),
    "a round is missing": (HEADER + "2,0,0,w,1,1\n2,1,0,w,1,1\n", "where 2 of round 1 are due"),
    "a client that is not there": (HEADER + "1,0,0,w,1,1\n1,3,0,w,1,1\n", "clients cannot send: take its data"),
    "a client without samples": (HEADER + "1,0,0,w,1,1\n1,2,0,w,1,1\n", "clients cannot send: take its data"),
    "a version of the future": (HEADER + "1,0,0,w,1,1\n1,1,1,w,1,1\n", "clients cannot send: take its data"),
    "an update twice": (HEADER + "1,0,0,w,1,1\n1,0,0,w,1,1\n", "clients cannot send: take its data"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_run_is_refused(tmp_path, make_dataset, name):
    text, message = RECORDS[name]
    (tmp_path / "arrivals.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_arrivals(str(tmp_path / "arrivals.csv"), make_dataset([3, 3, 0]).train.sizes, 2)


def test_a_line_that_a_crash_has_cut_is_left_out_and_a_run_longer_than_its_record_is_told(tmp_path, make_dataset):
    (tmp_path / "arrivals.csv").write_text(HEADER + "1,0,0,w,1,1\n2,1,0,w,2.5,1\n3,0")
    settings = ServerConfig(num_rounds=3, clients_per_round=2, evaluate_every=0, arrivals=f"{tmp_path}/arrivals.csv")
    run = Simulation(
        make_dataset([3, 5]), logistic, algorithm=fedasync(), server=settings, trainer=SerialTrainer, device="cpu"
    )
    rounds = run.rounds()
    assert next(rounds)["staleness_max"] == 0
    assert next(rounds)["wall_seconds"] == 2.5
    with pytest.raises(ValueError, match=r"has 2 rounds and no more: set server\.num_rounds=2"):
        next(rounds)
