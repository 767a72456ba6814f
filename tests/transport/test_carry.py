"""What clients keep, and updates that must be seen one by one, in other processes: the same run as in one process."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

from fedsim.aggregate import ClientRows, PartialAverage
from fedsim.algorithms import ditto, fedadam, fedavg, feddyn, ifca, scaffold
from fedsim.algorithms.base import update_size
from fedsim.attacks import gaussian_attack, label_flip, little_is_enough, sign_flip
from fedsim.checkpoint import Checkpoint
from fedsim.devices import drawn
from fedsim.robust import geometric_median, krum, mean, median, trimmed_mean
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import adaptive_clip, clip, gaussian, local_gaussian, qsgd, random_k, top_k
from fedsim.transport import identity
from fedsim.transport.base import Job
from fedsim.transport.carry import Ledger, ServerBooks

ALGORITHMS = {
    "fedavg": fedavg,
    "fedadam": fedadam,
    "scaffold": scaffold,
    "feddyn": feddyn,
    "ditto": ditto,
    "ifca": ifca,  # a pass before the round's training, and vectors that clients keep
}
ROUNDS = {"num_rounds": 5}


@pytest.fixture
def few_rows(monkeypatch):
    """Messages take the vectors of two clients or so, hence a worker gets several shares a round."""
    monkeypatch.setattr(identity, "MESSAGE_BYTES", 500)


def grow(net, shape, *trainers):
    """Adds workers "2", "4" or the tree "1-2-4" below the star; the workers take the trainers in turn."""
    top = net.stars[0].address
    places = [top] * int(shape) if shape != "1-2-4" else [net.scheduler(top)[1], net.scheduler(top)[1]] * 2
    net.expected = len(places)
    for i, place in enumerate(places):
        net.worker(place, trainer=trainers[i % len(trainers)])


def kept(simulation):
    """Everything that clients keep."""
    return {
        name: (state.written.tolist(), state.read(state.written)) for name, state in simulation.client_states.items()
    }


def equal(ours, theirs, atol=0.0):
    """The same model, and the same vectors of the same clients."""
    torch.testing.assert_close(ours.server.vector, theirs.server.vector, rtol=0.0, atol=atol)
    here, there = kept(ours), kept(theirs)
    assert here.keys() == there.keys()
    for name, (clients, rows) in here.items():
        assert clients == there[name][0]
        torch.testing.assert_close(rows, there[name][1], rtol=0.0, atol=10 * atol)


@pytest.mark.parametrize("shape", ["2", "4", "1-2-4"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_end_in_the_bits_of_one_process(net, few_rows, name, shape):
    net.algorithm = ALGORITHMS[name]
    simulation = net.simulation(net.star, **ROUNDS)
    grow(net, shape, SerialTrainer)
    simulation.own.run_round = None  # the server itself trains nothing
    net.run(simulation)
    equal(simulation, net.alone(**ROUNDS))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_serial_and_vectorized_workers_agree_to_rounding(net, name):
    net.algorithm = ALGORITHMS[name]
    simulation = net.simulation(net.star, **ROUNDS)
    grow(net, "1-2-4", SerialTrainer, SerialTrainer, partial(VectorizedTrainer, num_slots=2))
    net.run(simulation)
    equal(simulation, net.alone(**ROUNDS), atol=1e-6)


WAYS = {
    "adaptive_clip": {"transforms": [adaptive_clip(initial_norm=0.2)]},
    "private": {"transforms": [clip(0.3), gaussian(0.2)]},
    "local privacy, qsgd": {"transforms": [local_gaussian(0.3, 0.1), qsgd(6, 8)]},
    "top_k": {"transforms": [top_k(0.05, momentum=0.9)]},
    "random_k, median": {"transforms": [random_k(0.3, error_feedback=True)], "aggregator": median()},
    "krum under attack": {"aggregator": krum(1), "attack": sign_flip(0.2)},
    "trimmed, little, top_k": {
        "aggregator": trimmed_mean(0.3, memory_mib=0.001),
        "attack": little_is_enough(0.4, z=1.0),
        "transforms": [clip(0.3), top_k(0.2)],
    },
    "geometric, noisy": {"aggregator": geometric_median(), "attack": gaussian_attack(0.2, deviation=0.3)},
    "mean, little": {"attack": little_is_enough(0.4, z=1.0), "transforms": [clip(0.3)]},
    "equal, flipped": {"aggregator": mean(equal_weights=True), "attack": label_flip(0.3)},
}


@pytest.mark.parametrize("shape", ["2", "1-2-4"])
@pytest.mark.parametrize("name", WAYS)
def test_what_happens_to_updates_is_the_same(net, few_rows, name, shape):
    net.parts = lambda: WAYS[name]
    simulation = net.simulation(net.star)
    grow(net, shape, SerialTrainer)
    simulation.own.run_round = None
    found = []
    net.run(simulation, found.append, whole=True)
    alone = net.simulation()
    expected = list(alone.rounds())
    equal(simulation, alone)
    for ours, theirs in zip(found, expected, strict=True):
        for key in theirs.keys() - {"seconds", "evaluate_seconds", "peak_memory_bytes"}:
            assert ours[key] == theirs[key], key


@pytest.mark.parametrize("shape", ["2", "1-2-4"])
def test_who_must_stop_for_the_deadline_stops_elsewhere_too(net, few_rows, shape):
    """Four samples a second and five seconds for the work: clients with more than 20 send a part of theirs."""
    devices = partial(drawn, samples_per_second=4.0)
    rounds = {**ROUNDS, "deadline": 5.0, "partial_work": True}
    net.algorithm, net.parts = scaffold, lambda: {"devices": devices}
    simulation, alone = net.simulation(net.star, **rounds), net.alone(**rounds)
    whole = net.alone(**ROUNDS)
    net.parts = dict
    grow(net, shape, SerialTrainer)
    simulation.own.run_round = None
    net.run(simulation)
    equal(simulation, alone)
    assert simulation.server.clock.seconds == alone.server.clock.seconds == 25.0
    assert not torch.equal(alone.server.vector, whole.server.vector)


def test_rules_and_vectors_of_clients_go_together(net, few_rows):
    net.algorithm, net.parts = scaffold, lambda: WAYS["trimmed, little, top_k"]
    simulation = net.simulation(net.star)
    grow(net, "2", SerialTrainer)
    net.run(simulation)
    equal(simulation, net.alone())


class Fragile:
    """A worker's transport that does something before and after its shares."""

    def __init__(self, own, before=lambda job: None, after=lambda job: None):
        self.own, self.before, self.after = own, before, after

    def run_round(self, job):
        self.before(job)
        partial = self.own.run_round(job)
        self.after(job)
        return partial

    def close(self):
        self.own.close()


@pytest.mark.parametrize(
    ("name", "parts"),
    [("scaffold", {}), ("scaffold", WAYS["trimmed, little, top_k"]), ("feddyn", {}), ("ditto", {}), ("ifca", {})],
)
def test_who_dies_and_who_trains_twice_is_not_seen(net, few_rows, eventually, name, parts):
    """One worker loses its link after it has trained and before it has told; one is slow and overtaken; the server
    trains a few clients itself."""
    net.algorithm, net.parts, net.settings = ALGORITHMS[name], lambda: parts, {"slow_factor": 1.5}
    simulation = net.simulation(net.star, **ROUNDS)
    net.expected, wake, deaths = 3, threading.Event(), [2, 4]
    address = net.stars[0].address
    nodes = []

    def die(job):
        if deaths and job.round >= deaths[0]:
            deaths.pop(0)
            nodes[0].link.abort()

    nodes.append(net.worker(address, wrap=lambda own: Fragile(own, after=die)))
    net.worker(address, wrap=lambda own: Fragile(own, before=lambda job: job.round == 3 and wake.wait(60)))
    net.worker(address)
    pieces, train = [], simulation.own.run_round

    def here(job):
        pieces.append(job.round)
        return train(job)

    simulation.own.run_round = here

    def nobody_is_left():
        for worker in net.workers:  # one may be joining again just now
            worker.first, worker.upstream, worker.join_seconds = ["127.0.0.1:1"], [], 0.1
            worker.link.abort()
        net.stars[0].next_event(0)
        return not net.stars[0].children and not any(thread.is_alive() for thread in net.threads)

    def between(round):
        if round == 3:
            wake.set()
        if round == 4:  # and so the server trains
            eventually(nobody_is_left)

    net.run(simulation, between)
    equal(simulation, net.alone(**ROUNDS))
    assert 5 in pieces


def test_a_run_that_was_stopped_goes_on_with_other_workers(net, tmp_path):
    net.algorithm, net.parts = scaffold, lambda: {"transforms": [top_k(0.2)]}
    first = net.simulation(net.star, num_rounds=2)
    for state in first.client_states.values():
        state.locate(tmp_path / "client_state")
    grow(net, "2", SerialTrainer)
    net.run(first)
    first.save(tmp_path, {})
    net.stars.clear()
    second = net.simulation(net.star, **ROUNDS)
    for state in second.client_states.values():
        state.locate(tmp_path / "client_state")
    second.restore(Checkpoint.load(tmp_path, "cpu"), {})
    grow(net, "1-2-4", SerialTrainer)
    net.run(second)
    equal(second, net.alone(**ROUNDS))


def test_a_round_that_fails_moves_nothing_that_clients_keep(net, few_rows):
    net.algorithm = scaffold
    simulation = net.simulation(net.star)
    grow(net, "2", SerialTrainer)
    net.stars[0].gather()
    rounds = simulation.rounds()
    next(rounds)
    before = kept(simulation)
    simulation.server.vector[0] = np.nan
    with pytest.raises(ValueError, match=r"round 2: the \w+ of client \d+ .* is not finite"):
        next(rounds)
    simulation.close()
    for name, (clients, rows) in kept(simulation).items():
        assert clients == before[name][0]
        assert torch.equal(rows, before[name][1])
    assert not simulation.trainer.clients.pending


def fail(memory, rows):
    with memory.settled(np.array([2])):
        memory.vectors.write(np.array([2]), rows)
        raise ValueError("out of memory")


def test_a_piece_of_a_round_that_fails_is_forgotten_alone(net):
    net.algorithm = scaffold
    memory = net.simulation().trainer.memory
    rows = torch.ones(1, memory.vectors.size)
    with memory.settled():
        memory.vectors.write(np.array([1]), rows)
        with memory.settled(np.array([3])):
            memory.vectors.write(np.array([3]), rows)
        with pytest.raises(ValueError, match="out of memory"):
            fail(memory, rows)
        assert memory.vectors.pending == {1, 3}
    assert not memory.vectors.pending
    assert memory.vectors.written.tolist() == [1, 3]


def test_bytes_of_both_passes_and_of_what_clients_keep_are_counted(net):
    net.algorithm = ifca
    simulation = net.simulation(net.star)
    grow(net, "2", SerialTrainer)
    net.stars[0].gather()
    row = list(simulation.rounds())[-1]
    simulation.close()
    up = row["bytes_up/w0"] + row["bytes_up/w1"]
    down = row["bytes_down/w0"] + row["bytes_down/w1"]
    job = simulation.server.next_job()
    # twice, two workers: what is broadcast; and the float64 sums, of which those of the first pass may be shorter
    assert down > 2 * 2 * 4 * len(job.broadcast)
    vectors = 7 * simulation.trainer.clients.row_bytes
    assert up > 2 * 2 * 8 * len(simulation.server.vector) + 2 * vectors


def share(books, job, **changes):
    """A right result of the job, changed."""
    rows = {"state": ClientRows(clients=job.cohort, rows=torch.zeros(len(job.cohort), books.sizes["state"]))}
    about = {"total": torch.zeros(3, dtype=torch.float64), "weight": 1.0, "scale": 64.0, "rows": rows}
    return PartialAverage(**{**about, **changes})


def test_vectors_that_were_not_asked_for_are_refused(net):
    net.algorithm = scaffold
    simulation = net.simulation()
    cohort = np.array([1, 2, 4])
    job = Job(round=1, cohort=cohort, sizes=np.ones(3, np.int64), broadcast=torch.zeros(3), scale=64.0)
    books = ServerBooks(Ledger(simulation.own, None), job)
    size = books.sizes["state"]
    books.check(share(books, job), job)
    wrong = {
        "vectors named": {},
        "that it was not given": {"state": ClientRows(clients=np.array([1, 2, 3]), rows=torch.zeros(3, size))},
        "of other clients": {"state": ClientRows(clients=np.array([1, 2]), rows=torch.zeros(2, size))},
        "of another length": {"state": ClientRows(clients=cohort, rows=torch.zeros(3, size + 1))},
        "weights": {"state": ClientRows(clients=cohort, rows=torch.zeros(3, size), weights=np.ones(3))},
    }
    for message, rows in wrong.items():
        with pytest.raises(ValueError, match=message):
            books.check(share(books, job, rows=rows), job)
    knowing = ServerBooks(Ledger(simulation.own, None, simulation.training), job)
    length = update_size(scaffold(), simulation.model.layout)
    knowing.check(share(books, job, total=torch.zeros(length, dtype=torch.float64)), job)
    for total in (torch.zeros(length), torch.zeros(1, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"another length or dtype than this run has"):
            knowing.check(share(books, job, total=total), job)


@pytest.mark.parametrize(("aggregator", "size"), [(mean(dtype="float32"), 52), (median(), 0)])
def test_with_an_uplink_a_sum_of_another_kind_is_refused(net, aggregator, size):
    net.parts = lambda: {"aggregator": aggregator, "transforms": [clip(1.0)]}
    simulation = net.simulation()
    job = Job(round=1, cohort=np.array([1]), sizes=np.ones(1, np.int64), broadcast=torch.zeros(3), scale=64.0)
    assert simulation.uplink is not None
    with simulation.uplink.pieces(), Ledger(simulation.own, simulation.uplink).open(job) as books:
        assert books.total == (size, torch.float32 if size else torch.float64)
        with pytest.raises(ValueError, match=r"another length or dtype than this run has"):
            books.check(PartialAverage(total=torch.zeros(7), weight=1.0, scale=64.0), job)
