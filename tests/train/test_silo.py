"""Silos: several processes (threads here, on real connections) that share each minibatch, against one process."""

import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from fedsim import LocalConfig, ServerConfig, Simulation
from fedsim.algorithms import ditto, fedprox, scaffold
from fedsim.initial_model import build_model
from fedsim.models import convnet2, leaf_cnn, logistic, mlp
from fedsim.objective import cross_entropy
from fedsim.train.group import Group, SiloBroken
from fedsim.train.serial import SerialTrainer
from fedsim.train.silo import Silo, SiloTrainer, serve
from fedsim.transport.link import gloo_device

# the last minibatch of 5 has 2, 3, 1, 4 or 5 samples; one client has fewer samples than a silo has processes
SIZES = [7, 23, 1, 31, 14, 0, 20]
MOMENTUM = LocalConfig(batch_size=5, num_epochs=2, learning_rate=0.05, momentum=0.9)
RICH = replace(MOMENTUM, nesterov=True, weight_decay=1e-2, max_gradient_norm=0.5)


class Silos:
    """Starts silos of threads."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.ended: list[BaseException | None] = []
        self.groups: list[Group] = []

    def start(self, dataset, model, size: int, *, timeout: float = 30.0, answers: int | None = None) -> Group:
        """The first process's group; the other processes answer, one of them only so many times."""
        wait = timedelta(seconds=30)
        store = TCPStore("127.0.0.1", 0, None, True, wait, wait_for_workers=False)

        def group(rank: int) -> Group:
            mine = store if rank == 0 else TCPStore("127.0.0.1", store.port, None, False, wait)
            return Group(mine, rank, size, device=gloo_device("127.0.0.1"), timeout=timeout)

        def member(rank: int) -> None:
            flat = build_model(dataset, model, seed=7, device="cpu")  # another one: its values do not matter
            ours = group(rank)
            self.groups.append(ours)
            if rank == size - 1 and answers is not None:
                ours.add = partial(_count_down, ours.add, [answers])
            try:
                serve(ours, flat, dataset)
                self.ended.append(None)
            except (SiloBroken, _Dead) as error:
                self.ended.append(error)

        for rank in range(1, size):
            self.threads.append(threading.Thread(target=member, args=(rank,), daemon=True))
            self.threads[-1].start()
        return group(0)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads)


class _Dead(Exception):
    pass


def _count_down(add, left, tensor):
    left[0] -= 1
    if left[0] < 0:
        raise _Dead
    return add(tensor)


@pytest.fixture
def silos():
    silos = Silos()
    yield silos
    silos.join()


def run(dataset, model, trainer, *, algorithm=None, local=MOMENTUM, rounds=2):
    server = ServerConfig(num_rounds=rounds, clients_per_round=min(5, dataset.num_clients), evaluate_every=0)
    simulation = Simulation(
        dataset, model, algorithm=algorithm, local=local, server=server, trainer=trainer, device="cpu"
    )
    try:
        losses = [metrics["train_loss"] for metrics in simulation.rounds()]
    finally:
        simulation.close()
    return simulation, losses


def silo_of(group):
    return partial(SiloTrainer, group=group)


CASES = {
    "momentum": (logistic, (12,), None, MOMENTUM),
    "rich": (lambda s, c: leaf_cnn(s, c, hidden_size=16), (1, 8, 8), None, RICH),
    "whole": (logistic, (12,), None, replace(MOMENTUM, batch_size=None)),
    # a smaller epsilon would blow up the rounding of gradients that are almost zero
    "adam": (mlp, (12,), None, LocalConfig(batch_size=5, optimizer="adam", learning_rate=0.01, epsilon=1e-2)),
    "fedprox": (logistic, (12,), fedprox(proximal_weight=0.5), MOMENTUM),
    "scaffold": (logistic, (12,), scaffold(), MOMENTUM),
    "ditto": (logistic, (12,), ditto(), MOMENTUM),
}


@pytest.mark.parametrize(("case", "size"), [*((name, 2) for name in CASES), ("momentum", 3), ("momentum", 1)])
def test_several_processes_end_in_the_model_of_one(make_dataset, silos, case, size):
    model, shape, algorithm, local = CASES[case]
    dataset = make_dataset(SIZES, shape=shape)
    group = silos.start(dataset, model, size)
    ours, losses = run(dataset, model, silo_of(group), algorithm=algorithm, local=local)
    reference, expected = run(dataset, model, SerialTrainer, algorithm=algorithm, local=local)
    torch.testing.assert_close(ours.server.vector, reference.server.vector, atol=1e-6, rtol=1e-5)
    assert losses == pytest.approx(expected, rel=1e-5)
    silos.join()
    assert silos.ended == [None] * (size - 1)
    for name, state in ours.client_states.items():
        rows = reference.client_states[name].written
        assert (state.written == rows).all()
        torch.testing.assert_close(state.read(rows), reference.client_states[name].read(rows), atol=1e-5, rtol=1e-4)


def test_several_processes_minimise_what_one_does(make_dataset, silos):
    plain = make_dataset(SIZES)
    dataset = replace(plain, objective=cross_entropy(label_smoothing=0.4))
    ours, losses = run(dataset, logistic, silo_of(silos.start(dataset, logistic, 2)))
    theirs, expected = run(dataset, logistic, SerialTrainer)
    torch.testing.assert_close(ours.server.vector, theirs.server.vector, atol=1e-5, rtol=1e-4)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses != pytest.approx(run(plain, logistic, SerialTrainer)[1], rel=1e-3)


def test_a_silo_is_started_once_for_what_is_tried_too(make_dataset, silos):
    """The footprint takes trial steps apart from what clients keep."""
    dataset = make_dataset(SIZES)
    group, made = silos.start(dataset, logistic, 2), []

    def factory(*arguments, **options):
        made.append(SiloTrainer(*arguments, group=group, **options))
        return made[-1]

    server = ServerConfig(clients_per_round=5)
    simulation = Simulation(
        dataset, logistic, algorithm=scaffold(), local=MOMENTUM, server=server, trainer=factory, device="cpu"
    )
    before = simulation.server.vector.clone()
    assert simulation.footprint().extra > 0
    assert made == [simulation.trainer]
    assert torch.equal(simulation.server.vector, before)
    assert not simulation.client_states["state"].written.size
    simulation.close()


def test_an_average_of_the_processes_means_would_show(make_dataset, silos, monkeypatch):
    """Of 7 samples in minibatches of 5, two processes get 3 and 2, then 1 and 1: means of means are another model."""
    from fedsim.train import silo

    dataset = make_dataset([7])
    local = LocalConfig(batch_size=5, learning_rate=0.5)
    reference, _ = run(dataset, logistic, SerialTrainer, local=local)
    own = silo._Parts.own

    def mean(parts, rows, numbers):
        sums, buffers = own(parts, rows, numbers)
        mine = len(numbers.tensor_split(2)[parts.group.rank])
        return sums.mul_(len(numbers) / (2 * mine)), buffers

    monkeypatch.setattr(silo._Parts, "own", mean)
    ours, _ = run(dataset, logistic, silo_of(silos.start(dataset, logistic, 2)), local=local)
    assert (ours.server.vector - reference.server.vector).abs().max() > 1e-4


def dropout(shape, num_classes):
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes))


def test_dropout_is_a_function_of_the_seed_for_a_given_number_of_processes(make_dataset, silos):
    dataset = make_dataset(SIZES)
    found = []
    for _ in range(2):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        found.append(run(dataset, dropout, silo_of(silos.start(dataset, dropout, 1)), rounds=1)[0].server.vector)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


class Counting(nn.Module):
    """Keeps a running mean of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12))
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        self.mean.copy_(0.9 * self.mean + 0.1 * x.detach().mean(0))
        return self.linear(x - self.mean)


def test_a_model_that_looks_across_the_minibatch_is_refused(make_dataset, silos):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))
    norm = partial(convnet2, hidden_size=8)
    with pytest.raises(ValueError, match=r"trainer=silo divides every minibatch .* \(BatchNorm2d\) looks across"):
        run(dataset, norm, silo_of(silos.start(dataset, norm, 1)))
    dataset = make_dataset(SIZES)
    with pytest.raises(ValueError, match="the model moves running statistics"):
        run(dataset, lambda s, c: Counting(), silo_of(silos.start(dataset, lambda s, c: Counting(), 2)))


def test_a_client_that_is_not_finite_is_named_and_the_silo_trains_on(make_dataset, silos):
    dataset = make_dataset([7, 23])
    model = build_model(dataset, logistic, seed=0, device="cpu")
    wild = replace(MOMENTUM, learning_rate=1e38)
    trainer = silo_of(silos.start(dataset, logistic, 2))
    server = ServerConfig(num_rounds=2, clients_per_round=2, evaluate_every=0)
    simulation = Simulation(dataset, logistic, local=wild, server=server, trainer=trainer, device="cpu")
    with pytest.raises(ValueError, match=r"client 1 \(client_1\) is not finite"):
        next(simulation.rounds())
    assert torch.equal(simulation.server.vector, model.vector)
    simulation.trainer.serial.local = MOMENTUM
    reference, _ = run(dataset, logistic, SerialTrainer, rounds=1)
    next(simulation.rounds())
    simulation.close()
    torch.testing.assert_close(simulation.server.vector, reference.server.vector, atol=1e-6, rtol=1e-5)


def test_a_process_that_stands_still_ends_the_silo_within_the_bound(make_dataset, silos):
    """The last of three processes stops answering at the 20th step."""
    dataset = make_dataset(SIZES)
    group = silos.start(dataset, logistic, 3, timeout=1.0, answers=20)
    begin = time.monotonic()
    with pytest.raises(SiloBroken, match=r"a process of this silo (does not answer|is gone)"):
        run(dataset, logistic, silo_of(group), rounds=50)
    assert time.monotonic() - begin < 20
    with pytest.raises(SiloBroken, match="has lost a process before"):
        group.add(torch.zeros(3))
    silos.join()
    assert sorted(type(error).__name__ for error in silos.ended) == ["SiloBroken", "_Dead"]


def test_settings():
    assert Silo(num_processes=3).count(None) == 3
    assert Silo().count(4) == 4
    assert Silo().count(None) >= 2
    for settings, message in (
        ({"num_processes": 0}, "num_processes must be at least 1"),
        ({"timeout": 0.0}, "timeout must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            Silo(**settings)
    with pytest.raises(ValueError, match="num_processes=2, but torchrun has started 3"):
        Silo(num_processes=2).count(3)
    with pytest.raises(ValueError, match="names 1 devices for 2 processes"):
        Silo(devices=["cpu"]).count(2)
