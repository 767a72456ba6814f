"""Clients' own models against their papers' loops, and the optimum that FedAvg misses."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsim import algorithms
from fedsim.config import LocalConfig, ServerConfig
from fedsim.models import logistic, mlp
from fedsim.simulation import Simulation
from fedsim.train.own import own_models
from fedsim.train.plan import make_plan

SIZES = [12, 20, 7, 4]
ETA = 0.1
LOCAL = LocalConfig(batch_size=6, num_epochs=2, learning_rate=ETA)
ROUNDS = 3


@pytest.fixture
def make(make_dataset):
    def build(algorithm, factory=logistic, local=LOCAL, clients=3, sizes=SIZES, rounds=ROUNDS):
        dataset = make_dataset(sizes)
        train = dataclasses.replace(dataset.train, inputs=dataset.train.inputs.double())
        dataset = dataclasses.replace(dataset, train=train, test=None)
        return Simulation(
            dataset,
            lambda s, c: factory(s, c).double(),
            algorithm=algorithm,
            local=local,
            server=ServerConfig(num_rounds=rounds, clients_per_round=clients, evaluate_every=0),
            device="cpu",
        )

    return build


def batches(simulation, client, round, **options):
    train = simulation.dataset.train
    plan = make_plan(train, np.array([client]), simulation.local, seed=0, round=round, **options)
    for rows, count in zip(plan.rows[:, 0], plan.counts[:, 0], strict=True):
        kept = torch.from_numpy(rows[:count])
        yield train.inputs[kept], train.targets[kept]


def loss(w, batch):
    return cross_entropy(batch[0] @ w[:48].view(4, 12).T + w[48:], batch[1])


def grad(w, batch):
    w = w.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(w, batch), w)[0]


def own(simulation):
    """{client: its own model}"""
    s = simulation
    found = own_models(
        s.dataset,
        s.model,
        s.algorithm,
        s.trainer.memory,
        s.local,
        range(s.dataset.num_clients),
        broadcast=s.server.broadcast,
        round=s.server.round,
        seed=0,
    )
    return {client: vector.clone() for client, vector in found}


def mean_of(models, cohort):
    total = sum(SIZES[i] for i in cohort)
    return sum(SIZES[i] / total * m for i, m in zip(cohort, models, strict=True))


def ditto(simulation):
    w, v = simulation.server.vector.clone(), {}
    for t in range(1, ROUNDS + 1):
        cohort, models = simulation.server.sampler(0, t).tolist(), []
        for i in cohort:
            y, mine = w, v.get(i, w)
            for batch in batches(simulation, i, t):
                y = y - ETA * grad(y, batch)
                mine = mine - 0.03 * (grad(mine, batch) + 0.4 * (mine - w))
            v[i] = mine
            models.append(y)
        w = mean_of(models, cohort)
    return w, {i: v.get(i, w) for i in range(len(SIZES))}


def apfl(simulation):
    w, v, a = simulation.server.vector.clone(), {}, dict.fromkeys(range(len(SIZES)), 0.4)
    for t in range(1, ROUNDS + 1):
        cohort, models = simulation.server.sampler(0, t).tolist(), []
        for i in cohort:
            y, mine = w, v.get(i, w)
            for batch in batches(simulation, i, t):
                at_mixture = grad(a[i] * mine + (1 - a[i]) * y, batch)
                change = float((mine - y) @ at_mixture)
                y, mine = y - ETA * grad(y, batch), mine - ETA * a[i] * at_mixture
                a[i] = min(1.0, max(0.0, a[i] - ETA * change))
            v[i] = mine
            models.append(y)
        w = mean_of(models, cohort)
    return w, {i: a[i] * v.get(i, w) + (1 - a[i]) * w for i in range(len(SIZES))}


def pfedme(simulation):
    w, v = simulation.server.vector.clone(), {}
    for t in range(1, ROUNDS + 1):
        cohort, models = simulation.server.sampler(0, t).tolist(), []
        for i in cohort:
            y = theta = w
            for batch in batches(simulation, i, t):
                for _ in range(2):
                    theta = theta - 0.05 * (grad(theta, batch) + 3.0 * (theta - y))
                y = y - ETA * 3.0 * (y - theta)
            v[i] = theta
            models.append(y)
        w = mean_of(models, cohort)
    return w, {i: v.get(i, w) for i in range(len(SIZES))}


def local_only(simulation):
    w, v = simulation.server.vector.clone(), {}
    for t in range(1, ROUNDS + 1):
        for i in simulation.server.sampler(0, t).tolist():
            v.setdefault(i, w)
            for batch in batches(simulation, i, t):
                v[i] = v[i] - ETA * grad(v[i], batch)
    return w, {i: v.get(i, w) for i in range(len(SIZES))}


def ifca(simulation):
    from fedsim.simulation import _draw

    factory = lambda s, c: logistic(s, c).double()  # noqa: E731
    centres = [_draw(factory, simulation.dataset, 0, m) for m in range(2)]
    assert torch.equal(centres[0], simulation.server.vector)

    def nearest(client):
        rows = torch.from_numpy(simulation.dataset.train.rows(client))
        whole = simulation.dataset.train.inputs[rows], simulation.dataset.train.targets[rows]
        return int(torch.stack([loss(c, whole) for c in centres]).argmin())

    for t in range(1, ROUNDS + 1):
        cohort, models = simulation.server.sampler(0, t).tolist(), {0: [], 1: []}
        for i in cohort:
            m = nearest(i)
            y = centres[m]
            for batch in batches(simulation, i, t):
                y = y - ETA * grad(y, batch)
            models[m].append((i, y))
        centres = [
            mean_of([y for _, y in models[m]], [i for i, _ in models[m]]) if models[m] else centres[m] for m in (0, 1)
        ]
    return centres[0], {i: centres[nearest(i)] for i in range(len(SIZES))}


LOOPS = {
    "ditto": (lambda: algorithms.ditto(0.4, 0.03), ditto),
    "apfl": (lambda: algorithms.apfl(0.4), apfl),
    "pfedme": (lambda: algorithms.pfedme(3.0, 0.05, 2), pfedme),
    "local_only": (algorithms.local_only, local_only),
    "ifca": (lambda: algorithms.ifca(2), ifca),
}


@pytest.mark.parametrize("case", LOOPS)
def test_own_models_equal_the_papers_loop(make, case):
    algorithm, loop = LOOPS[case]
    simulation = make(algorithm())
    w, v = loop(simulation)
    for _ in range(ROUNDS):
        simulation.server.run_round()
    torch.testing.assert_close(simulation.server.vector, w, atol=1e-10, rtol=1e-8)
    found = own(simulation)
    for client, expected in v.items():
        torch.testing.assert_close(found[client], expected, atol=1e-10, rtol=1e-8)


def test_per_fedavgs_own_model_is_one_step_from_the_global_one(make):
    simulation = make(algorithms.perfedavg(0.05))
    simulation.server.run_round()
    w = simulation.server.vector.clone()
    local = dataclasses.replace(LOCAL, num_steps=1)
    for client, model in own(simulation).items():
        plan = make_plan(simulation.dataset.train, np.array([client]), local, seed=0, round=2)
        kept = torch.from_numpy(plan.rows[0, 0, : plan.counts[0, 0]])
        batch = simulation.dataset.train.inputs[kept], simulation.dataset.train.targets[kept]
        torch.testing.assert_close(model, w - 0.05 * grad(w, batch), atol=1e-12, rtol=1e-9)


def two_layers(shape, num_classes):
    return mlp(shape, num_classes, hidden_sizes=(5,))


@pytest.mark.parametrize("name", ["fedper", "lg_fedavg", "fedrep"])
def test_layers_stay_or_are_averaged(make, name):
    """A loop over named parameters: those that stay are the client's, the rest is averaged. (12, 5, 4: 65 and 24.)"""
    algorithm = getattr(algorithms, name)()
    simulation = make(algorithm, two_layers)
    head = torch.arange(89) >= 65
    stays = ~head if name == "lg_fedavg" else head
    x = simulation.model

    def gradient(w, batch):
        w = w.detach().clone().requires_grad_()
        hidden = torch.relu(batch[0] @ w[:60].view(5, 12).T + w[60:65])
        return torch.autograd.grad(cross_entropy(hidden @ w[65:85].view(4, 5).T + w[85:], batch[1]), w)[0]

    assert x.num_parameters == 89
    w, kept = simulation.server.vector.clone(), {}
    for t in range(1, ROUNDS + 1):
        cohort, models = simulation.server.sampler(0, t).tolist(), []
        for i in cohort:
            y = torch.where(stays, kept.get(i, w), w)
            steps = list(batches(simulation, i, t))
            for k, batch in enumerate(steps):
                moves = torch.ones(89) if name != "fedrep" else head if k < len(steps) / 2 else ~head
                y = y - ETA * gradient(y, batch) * moves
            kept[i] = y
            models.append(y)
        w = torch.where(stays, w, mean_of(models, cohort))
    for _ in range(ROUNDS):
        simulation.server.run_round()
    torch.testing.assert_close(simulation.server.vector, w, atol=1e-10, rtol=1e-8)
    for client, model in own(simulation).items():
        torch.testing.assert_close(model, torch.where(stays, kept.get(client, w), w), atol=1e-10, rtol=1e-8)


def test_clients_csv_reports_the_own_model(make):
    simulation = make(algorithms.ditto(0.4, 0.03))
    for _ in range(2):
        simulation.server.run_round()
    clients, models = simulation.clients(), own(simulation)
    train = simulation.dataset.train
    for client, row in enumerate(clients.itertuples()):
        rows = torch.from_numpy(train.rows(client))
        whole = train.inputs[rows], train.targets[rows]
        assert row.loss == pytest.approx(float(loss(models[client], whole)))
        assert row.global_loss == pytest.approx(float(loss(simulation.server.vector, whole)))


HETEROGENEOUS = {
    "fedavg": algorithms.fedavg,
    "scaffold": algorithms.scaffold,
    "feddyn": lambda: algorithms.feddyn(0.3),
    "mime": lambda: algorithms.mime(0.0),
}


@pytest.mark.parametrize("name", HETEROGENEOUS)
def test_the_optimum_that_fedavg_misses(make, name):
    """Strongly convex: logistic regression with weight decay. Each client has one class; ten full-batch steps a round.

    The optimum of the pooled loss comes from Newton's method. All clients train in every round.
    """
    decay, sizes = 0.1, [15, 15, 15, 15]
    local = LocalConfig(batch_size=None, num_steps=10, learning_rate=0.3, weight_decay=decay)
    simulation = make(HETEROGENEOUS[name](), local=local, clients=4, sizes=sizes)
    train = simulation.dataset.train
    order = train.targets[:60].argsort()
    pooled = train.inputs[:60], train.targets[:60]
    simulation.dataset.train.inputs[:60], simulation.dataset.train.targets[:60] = pooled[0][order], pooled[1][order]
    pooled = train.inputs[:60].clone(), train.targets[:60].clone()

    def objective(w):
        return loss(w, pooled) + decay / 2 * w.square().sum()

    w = torch.zeros(52).double()
    for _ in range(20):
        v = w.clone().requires_grad_()
        slope = torch.autograd.grad(objective(v), v)[0]
        w = w - torch.linalg.solve(torch.autograd.functional.hessian(objective, w), slope)
    for _ in range(40):
        simulation.server.run_round()
    distance = float((simulation.server.vector - w).norm() / w.norm())
    if name == "fedavg":
        assert distance > 0.05
    else:
        assert distance < 1e-3
