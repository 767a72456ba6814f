"""Workers with data of their own (threads here, on real links) against one process that has all the data."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedsim import EvaluateConfig, LocalConfig, ServerConfig, Simulation, __version__
from fedsim.algorithms import fedavg
from fedsim.data.federated import Split
from fedsim.data.remote import held_elsewhere
from fedsim.deploy import _require_fit, evaluation
from fedsim.initial_model import build_model
from fedsim.models import logistic
from fedsim.objective import Objective, binary_cross_entropy, class_losses, cross_entropy, squared_error
from fedsim.sampling import fixed
from fedsim.train.serial import SerialTrainer
from fedsim.transport.identity import layout_hash
from fedsim.transport.join import listen
from fedsim.transport.own_data import OwnData
from fedsim.transport.owners import Owners, RemoteExaminer
from fedsim.transport.star import Star
from fedsim.transport.wire import Message, Wire
from fedsim.transport.worker import Built, Worker

SECRET = b"0123456789abcdef"
SIZES = [3, 17, 40, 8, 25, 0, 12, 31, 9, 22]
LOCAL = LocalConfig(learning_rate=0.1, batch_size=5, num_epochs=2, momentum=0.9)


def server(rounds, clients=7):
    return ServerConfig(num_rounds=rounds, clients_per_round=clients, evaluate_every=1)


class Deployment:
    """A server, and workers of some of the clients of one data set."""

    def __init__(self, net, make_dataset) -> None:
        whole = make_dataset(SIZES)
        assert whole.test is not None
        tests = replace(whole.test, offsets=np.arange(0, 220, 20))  # 20 of the 200 test samples are each client's
        self.net, self.union = net, replace(whole, test=tests)
        self.model = build_model(self.union, logistic, seed=0, device="cpu")
        self.asked: list[str] = []
        self.nodes: dict[str, Worker] = {}

    def part(self, clients):
        """What a worker has of these clients: arrays of its own."""

        def cut(split):
            rows = np.concatenate([split.rows(c) for c in clients])
            sizes = split.sizes[clients]
            return Split(inputs=split.inputs[rows], targets=split.targets[rows], offsets=np.append(0, sizes.cumsum()))

        names = [self.union.client_ids[c] for c in clients]
        return replace(self.union, train=cut(self.union.train), test=cut(self.union.test), client_ids=names)

    def open(self, num_workers, join_seconds=60.0):
        net = self.net
        identity = replace(net.identity(self.union, self.model), dataset=None)
        star = Star(
            listen("127.0.0.1:0"), secret=SECRET, identity=identity, own=None, timeout=30, join_seconds=60,
            expected=lambda: num_workers,
        )  # fmt: skip
        net.stars.append(star)
        return Owners(star, self.union.objective, join_seconds=join_seconds)

    def worker(self, owners, name, clients, *, evaluate=True, wrap=lambda own: own, **changes):
        def build(identity, upstream):
            dataset = self.part(clients)
            model = build_model(dataset, logistic, seed=5, device="cpu")  # drawn anew: the server's is what counts
            own = OwnData(
                dataset,
                lambda seated, job: SerialTrainer(seated, model, fedavg(), LOCAL, seed=0),
                local=LOCAL,
                seed=0,
                evaluate=evaluation(dataset, model) if evaluate else None,
                prefix=changes.get("prefix", ""),
            )

            def test(message):
                self.asked.append(name)
                return own.test(message)

            layout = layout_hash(model.layout, model.vector.dtype)
            ready = {"config_hash": "c", "layout": layout, "holds": own.holds}
            handlers = {"seat": own.seat, "evaluate": test}
            return Built(transport=wrap(own), device=torch.device("cpu"), ready=lambda: ready, handlers=handlers)

        node = Worker(
            [owners.star.address], secret=SECRET, name=name, version=__version__, claims=None, build=build,
            timeout=30, join_seconds=60,
        )  # fmt: skip
        self.nodes[name] = node
        self.net.start(node)

    def simulation(self, owners=None, rounds=3, **settings):
        shape = {"input_shape": self.union.input_shape, "num_classes": 4, "objective": self.union.objective}
        elsewhere = {}
        if owners is not None:
            elsewhere = {"transport": lambda simulation: owners, "examiner": RemoteExaminer(owners)}
        return Simulation(
            self.union if owners is None else held_elsewhere(owners.names, owners.sizes, **shape),
            logistic,
            local=LOCAL,
            trainer=SerialTrainer,
            device="cpu",
            **elsewhere,
            **{"server": server(rounds), **settings},
        )


@pytest.fixture
def deployment(net, make_dataset):
    return Deployment(net, make_dataset)


def test_the_model_is_that_of_all_data_in_one_place_and_no_sample_travels(deployment, monkeypatch):
    received = []
    receive = Wire.receive

    def spy(wire):
        message = receive(wire)
        received.append((wire, message))
        return message

    monkeypatch.setattr(Wire, "receive", spy)
    owners = deployment.open(2)
    deployment.worker(owners, "b", [8, 1, 5, 2])
    deployment.worker(owners, "a", [7, 0, 3, 4, 6, 9])
    owners.gather()
    assert owners.names == deployment.union.client_ids
    assert owners.sizes.tolist() == SIZES
    ours, reference = deployment.simulation(owners), deployment.simulation()
    rows, expected = list(ours.rounds()), list(reference.rounds())
    wires = {link.wire for link in owners.star.links}
    ours.close()
    assert torch.equal(ours.server.vector, reference.server.vector)
    for row, other in zip(rows, expected, strict=True):
        for name in ("train_loss", "test_loss", "test_accuracy"):
            assert row[name] == pytest.approx(other[name], rel=1e-6)
        assert (row["evaluated_workers"], row["declined_workers"]) == (2, 0)
        assert (row["evaluated_clients"], row["evaluated_samples"]) == (10, 200)

    messages = [message for wire, message in received if wire in wires and message is not None]
    assert {message.kind for message in messages} == {"hello", "ready", "result", "metrics"}
    sample = deployment.union.train.inputs
    size = len(ours.server.vector)
    for message in messages:
        assert len(repr(message.fields)) < 1500
        assert {name: (t.dtype, t.shape) for name, t in message.tensors.items()} in (
            {}, {"total": (torch.float64, (size,))},
        )  # fmt: skip
        for tensor in message.tensors.values():
            assert not any(torch.isin(row.double(), tensor).all() for row in sample)


def test_what_is_learned_and_measured_is_that_of_all_data_in_one_place(deployment):
    deployment.union = replace(deployment.union, objective=cross_entropy(label_smoothing=0.2, top_k=2))
    owners = deployment.open(2)
    deployment.worker(owners, "a", [0, 1, 2, 3, 4])
    deployment.worker(owners, "b", [5, 6, 7, 8, 9])
    owners.gather()
    ours, reference = deployment.simulation(owners), deployment.simulation()
    rows, expected = list(ours.rounds()), list(reference.rounds())
    ours.close()
    assert torch.equal(ours.server.vector, reference.server.vector)
    for row, other in zip(rows, expected, strict=True):
        for name in ("train_loss", "test_loss", "test_accuracy", "test_top_2_accuracy"):
            assert row[name] == pytest.approx(other[name], rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "size"), [(binary_cross_entropy(), 3), (squared_error(), 3), (squared_error(), 1)]
)
def test_a_server_without_a_target_predicts_its_memory(objective, size):
    """What a run does before its first round, with none of the workers' targets at hand."""
    some = held_elsewhere(["a"], np.ones(1, np.int64), input_shape=[6], num_classes=size, objective=objective)
    server = ServerConfig(num_rounds=1, clients_per_round=1)
    needed = Simulation(some, logistic, server=server, trainer=SerialTrainer, device="cpu").footprint()
    assert needed.extra > 0


def test_the_spread_over_clients_stays_with_their_workers(deployment):
    owners = deployment.open(1)
    deployment.worker(owners, "a", range(10))
    owners.gather()
    with pytest.raises(ValueError, match=r"evaluate\.spread: the figures of single clients stay with their workers"):
        deployment.simulation(owners, evaluate=EvaluateConfig(spread=True))
    owners.close()


def test_a_worker_whose_data_are_for_something_else_is_told(deployment):
    other = replace(deployment.part([0, 1]), objective=Objective(name="focal", losses=class_losses))
    run = {"input_shape": [12], "num_classes": 4}
    with pytest.raises(ValueError, match="is for the objective focal, the run's is cross_entropy: start the server"):
        _require_fit(other, run, cross_entropy())
    _require_fit(other, run, other.objective)


def test_a_worker_that_declines_is_counted_and_never_asked(deployment):
    owners = deployment.open(2)
    deployment.worker(owners, "a", [0, 1, 2, 3])
    deployment.worker(owners, "b", [4, 5, 6, 7, 8, 9], evaluate=False)
    owners.gather()
    simulation = deployment.simulation(owners, rounds=2)
    row = list(simulation.rounds())[-1]
    simulation.close()
    assert (row["evaluated_workers"], row["declined_workers"]) == (1, 1)
    assert (row["evaluated_clients"], row["evaluated_samples"]) == (4, 80)
    part = deployment.part([0, 1, 2, 3])
    sums = evaluation(part, deployment.model)(simulation.server.vector)
    assert row["test_accuracy"] == sums["sum_accuracy"] / 80
    assert set(deployment.asked) == {"a"}


def test_rounds_go_on_without_a_worker_that_is_gone_and_with_it_when_it_is_back(deployment, net):
    """Worker b leaves in round 2 and is back for round 3: as in one process where only a's clients are in round 2."""
    back = threading.Event()

    def wrap(own):
        def run_round(job):
            if job.round == 2:
                node = deployment.nodes["b"]
                join = node._join
                node._join = lambda: back.wait(60) and join()
                node.link.abort()
            return own.run_round(job)

        return SimpleNamespace(run_round=run_round, close=own.close)

    owners = deployment.open(2)
    mine, others = [0, 2, 4, 6, 8], [1, 3, 5, 7, 9]
    deployment.worker(owners, "a", mine)
    deployment.worker(owners, "b", others, wrap=wrap)
    owners.gather()
    ours = deployment.simulation(owners, server=server(3, 10))
    clients = []
    for row in ours.rounds():
        clients.append(row["clients"])
        if row["round"] == 2:
            back.set()
            net.await_children(2)
    ours.close()
    everybody = list(range(10))
    cohorts = lambda population, count: fixed(population, count, cohorts=[everybody, mine, everybody])  # noqa: E731
    reference = deployment.simulation(server=server(3, 10), sampler=cohorts)
    list(reference.rounds())
    assert clients == [9, 5, 9]
    # the grid of round 2 is that of the whole cohort, so its mean is rounded elsewhere
    torch.testing.assert_close(ours.server.vector, reference.server.vector, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_worker_that_hangs_is_given_up_when_the_others_have_answered(deployment, caplog, where):
    """Its heart still beats; b hangs in round 1, or in the evaluation after it."""
    wake = threading.Event()

    class Asked(list):
        def append(self, name):
            super().append(name)
            if (name, where) == ("b", "evaluation"):
                wake.wait(60)

    def wrap(own):
        def run_round(job):
            if where == "training":
                wake.wait(60)
            return own.run_round(job)

        return SimpleNamespace(run_round=run_round, close=own.close)

    deployment.asked = Asked()
    owners = deployment.open(2)
    owners.star.share_seconds = 1
    deployment.worker(owners, "a", [0, 2, 4, 6, 8])
    deployment.worker(owners, "b", [1, 3, 5, 7, 9], wrap=wrap)
    owners.gather()
    ours = deployment.simulation(owners, server=server(2, 10))
    try:
        rows = list(ours.rounds())
    finally:
        wake.set()
        ours.close()
    assert [row["clients"] for row in rows] == ([5, 5] if where == "training" else [9, 5])
    assert [row["evaluated_workers"] for row in rows] == [1, 1]
    assert "lost b: no answer for transport.share_seconds=1" in caplog.text


def test_workers_whose_clients_do_not_fit_are_refused(deployment, net, eventually):
    owners = deployment.open(3)
    deployment.worker(owners, "a", [0, 1, 2])
    deployment.worker(owners, "b", [2, 3])
    deployment.worker(owners, "c", [2, 3], prefix="c/")
    owners.gather()
    assert owners.names == ["c/client_2", "c/client_3", "client_0", "client_1", "client_2"]
    deployment.worker(owners, "d", [9])
    net.await_children(3)
    owners._seat()
    eventually(lambda: len(net.errors) == 2)
    told = sorted(str(error).partition("refused this node: ")[2] for error in net.errors)
    assert told == [
        "another worker has a client 'client_2' too; set deployment.prefix to tell them apart",
        "the run was begun without client 'client_9' with its samples; start it again",
    ]
    owners.close()


def test_a_worker_that_is_back_before_its_loss_was_noticed_takes_its_seat(deployment, net):
    """Its old link seems to live for a while; two that hold the same clients for longer are a mistake."""
    owners = deployment.open(1)
    deployment.worker(owners, "a", [0, 1, 2])
    owners.gather()
    simulation = deployment.simulation(owners, rounds=9, server=server(9, 3))
    rounds = simulation.rounds()
    next(rounds)
    (old,) = owners.seats
    deployment.worker(owners, "again", [0, 1, 2])
    net.await_children(2)
    next(rounds)
    assert set(owners.seats) == {old}
    owners.star.drop(old, "for the test")
    next(rounds)
    assert [child.name for child in owners.seats] == ["again"]
    assert deployment.asked[-1] == "again"

    owners.star.door.timeout = 0.0
    net.await_children(2)  # the first one has joined again too
    next(rounds), next(rounds)
    simulation.close()
    net.close()
    (error,) = net.errors
    assert str(error).endswith("refused this node: again holds some of its clients")


def test_clients_that_are_numbered_anew_are_another_run(deployment):
    """A server that was started again may have other workers, and so other numbers for the same clients."""
    part = deployment.part([1, 4])
    own = OwnData(part, lambda seated, job: deployment, local=LOCAL, seed=0)
    ended = []

    def seat(index, num_clients):
        tensors = {"index": torch.tensor(index)}
        own.seat(Message(kind="seat", fields={"num_clients": num_clients}, tensors=tensors))

    seat([0, 1], 2)
    first, own.own = own.seated, SimpleNamespace(close=lambda: ended.append(1))
    seat([0, 1], 2)
    assert own.seated is first
    assert own.own is not None
    seat([3, 1], 5)
    assert own.seated.train.sizes.tolist() == [0, SIZES[4], 0, SIZES[1], 0]
    assert own.own is None
    assert ended == [1]


def test_a_run_without_anybody_says_so(deployment):
    with pytest.raises(ValueError, match="no worker with data has joined"):
        deployment.open(0).gather()
    owners = deployment.open(1, join_seconds=0.1)
    deployment.worker(owners, "a", [0, 1])
    owners.gather()
    simulation = deployment.simulation(owners, server=server(1, 2))
    node = deployment.nodes["a"]
    node.join_seconds, node.first, node.upstream = 0.0, ["127.0.0.1:1"], []  # it will not come back
    owners.star.drop(owners.star.children[0], "for the test")
    with pytest.raises(ValueError, match=r"round 1: no worker that holds a client of the cohort was there for 0.1 s"):
        next(simulation.rounds())
    simulation.close()


def test_a_worker_that_fails_again_and_again_is_told_with_its_reason(deployment):
    tries = []

    def wrap(own):
        def run_round(job):
            tries.append(job.round)
            raise RuntimeError("no memory left on this one")

        return SimpleNamespace(run_round=run_round, close=own.close)

    owners = deployment.open(1, join_seconds=3.0)
    deployment.worker(owners, "a", [0, 1], wrap=wrap)
    owners.gather()
    simulation = deployment.simulation(owners, server=server(1, 2))
    with pytest.raises(ValueError, match=r"round 1: a failed 2 times: RuntimeError: no memory left on this one"):
        next(simulation.rounds())
    simulation.close()
    assert tries == [1, 1]
