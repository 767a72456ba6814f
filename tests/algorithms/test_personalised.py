"""Clients' own models against their papers' loops, and the optimum that FedAvg misses."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim import algorithms
from fedsim.config import LocalConfig
from fedsim.initial_model import draw_model
from fedsim.models import logistic, mlp
from fedsim.train.own import own_models

ROUNDS, ETA = 3, 0.1
LOCAL = LocalConfig(batch_size=6, num_epochs=2, learning_rate=ETA)


def own(simulation):
    """{client: its own model}"""
    s = simulation
    clients = range(s.dataset.num_clients)
    found = own_models(s.training, s.trainer.memory, clients, broadcast=s.server.broadcast, round=s.server.round)
    return {client: vector.clone() for client, vector in found}


def ditto(p):
    w, v = p.start, {}
    for t in range(1, ROUNDS + 1):
        cohort, models = p.cohorts[t - 1], []
        for i in cohort:
            y, mine = w, v.get(i, w)
            for batch in p.batches(i, t):
                y = y - ETA * p.grad(y, batch)
                mine = mine - 0.03 * (p.grad(mine, batch) + 0.4 * (mine - w))
            v[i] = mine
            models.append(y)
        w = p.mean(models, cohort)
    return w, {i: v.get(i, w) for i in range(len(p.sizes))}


def apfl(p):
    w, v, a = p.start, {}, dict.fromkeys(range(len(p.sizes)), 0.4)
    for t in range(1, ROUNDS + 1):
        cohort, models = p.cohorts[t - 1], []
        for i in cohort:
            y, mine = w, v.get(i, w)
            for batch in p.batches(i, t):
                at_mixture = p.grad(a[i] * mine + (1 - a[i]) * y, batch)
                change = float((mine - y) @ at_mixture)
                y, mine = y - ETA * p.grad(y, batch), mine - ETA * a[i] * at_mixture
                a[i] = min(1.0, max(0.0, a[i] - ETA * change))
            v[i] = mine
            models.append(y)
        w = p.mean(models, cohort)
    return w, {i: a[i] * v.get(i, w) + (1 - a[i]) * w for i in range(len(p.sizes))}


def pfedme(p):
    w, v = p.start, {}
    for t in range(1, ROUNDS + 1):
        cohort, models = p.cohorts[t - 1], []
        for i in cohort:
            y = theta = w
            for batch in p.batches(i, t):
                for _ in range(2):
                    theta = theta - 0.05 * (p.grad(theta, batch) + 3.0 * (theta - y))
                y = y - ETA * 3.0 * (y - theta)
            v[i] = theta
            models.append(y)
        w = p.mean(models, cohort)
    return w, {i: v.get(i, w) for i in range(len(p.sizes))}


def local_only(p):
    w, v = p.start, {}
    for t in range(1, ROUNDS + 1):
        for i in p.cohorts[t - 1]:
            v.setdefault(i, w)
            for batch in p.batches(i, t):
                v[i] = v[i] - ETA * p.grad(v[i], batch)
    return w, {i: v.get(i, w) for i in range(len(p.sizes))}


def ifca(p):
    def factory(shape, num_classes):
        return logistic(shape, num_classes).double()

    centres = [draw_model(factory, p.dataset, 0, m) for m in range(2)]
    assert torch.equal(centres[0], p.start)

    def nearest(client):
        return int(torch.stack([p.loss(c, p.whole(client)) for c in centres]).argmin())

    for t in range(1, ROUNDS + 1):
        taken = {0: [], 1: []}
        for i in p.cohorts[t - 1]:
            m = nearest(i)
            y = centres[m]
            for batch in p.batches(i, t):
                y = y - ETA * p.grad(y, batch)
            taken[m].append((i, y))
        centres = [
            p.mean([y for _, y in taken[m]], [i for i, _ in taken[m]]) if taken[m] else centres[m] for m in (0, 1)
        ]
    return centres[0], {i: centres[nearest(i)] for i in range(len(p.sizes))}


LOOPS = {
    "ditto": (lambda: algorithms.ditto(0.4, 0.03), ditto),
    "apfl": (lambda: algorithms.apfl(0.4), apfl),
    "pfedme": (lambda: algorithms.pfedme(3.0, 0.05, 2), pfedme),
    "local_only": (algorithms.local_only, local_only),
    "ifca": (lambda: algorithms.ifca(2), ifca),
}


@pytest.mark.parametrize("case", LOOPS)
def test_own_models_equal_the_papers_loop(make_problem, case):
    algorithm, loop = LOOPS[case]
    simulation, problem = make_problem(algorithm(), LOCAL)
    w, v = loop(problem)
    for _ in range(ROUNDS):
        simulation.server.run_round()
    torch.testing.assert_close(simulation.server.vector, w, atol=1e-10, rtol=1e-8)
    found = own(simulation)
    for client, expected in v.items():
        torch.testing.assert_close(found[client], expected, atol=1e-10, rtol=1e-8)


def test_per_fedavgs_own_model_is_one_step_from_the_global_one(make_problem):
    simulation, p = make_problem(algorithms.perfedavg(0.05), LOCAL)
    simulation.server.run_round()
    w = simulation.server.vector.clone()
    for client, model in own(simulation).items():
        first = next(p.batches(client, round=2))
        torch.testing.assert_close(model, w - 0.05 * p.grad(w, first), atol=1e-12, rtol=1e-9)


def two_layers(shape, num_classes):
    return mlp(shape, num_classes, hidden_sizes=(5,))


@pytest.mark.parametrize("name", ["fedper", "lg_fedavg", "fedrep"])
def test_layers_stay_or_are_averaged(make_problem, name):
    """A loop over named parameters: those that stay are the client's, the rest is averaged. (12, 5, 4: 65 and 24.)"""
    algorithm = getattr(algorithms, name)()
    simulation, p = make_problem(algorithm, LOCAL, two_layers)
    head = torch.arange(89) >= 65
    stays = ~head if name == "lg_fedavg" else head

    def gradient(w, batch):
        w = w.detach().clone().requires_grad_()
        hidden = torch.relu(batch[0] @ w[:60].view(5, 12).T + w[60:65])
        return torch.autograd.grad(cross_entropy(hidden @ w[65:85].view(4, 5).T + w[85:], batch[1]), w)[0]

    w, kept = p.start, {}
    for t in range(1, ROUNDS + 1):
        cohort, models = p.cohorts[t - 1], []
        for i in cohort:
            y = torch.where(stays, kept.get(i, w), w)
            steps = list(p.batches(i, t))
            for k, batch in enumerate(steps):
                moves = torch.ones(89) if name != "fedrep" else head if k < len(steps) / 2 else ~head
                y = y - ETA * gradient(y, batch) * moves
            kept[i] = y
            models.append(y)
        w = torch.where(stays, w, p.mean(models, cohort))
    for _ in range(ROUNDS):
        simulation.server.run_round()
    torch.testing.assert_close(simulation.server.vector, w, atol=1e-10, rtol=1e-8)
    for client, model in own(simulation).items():
        torch.testing.assert_close(model, torch.where(stays, kept.get(client, w), w), atol=1e-10, rtol=1e-8)


class Normed(nn.Module):
    """Two layers with BatchNorm between them."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.body(x)).relu())


def test_fedbn_keeps_normalisation_and_its_statistics(make_problem):
    """A loop over state dicts, with torch's own BatchNorm: what begins with `norm` stays, the rest is averaged."""
    simulation, p = make_problem(algorithms.fedbn(), dataclasses.replace(LOCAL, batch_size=None), Normed)
    everybody, module, kept = simulation.model.state_dict(simulation.server.vector), Normed((12,), 4).double(), {}
    for t in range(1, ROUNDS + 1):
        cohort, states = p.cohorts[t - 1], []
        for i in cohort:
            module.load_state_dict(everybody | kept.get(i, {}))
            for x, y in p.batches(i, t):
                module.zero_grad()
                cross_entropy(module(x), y).backward()
                for parameter in module.parameters():
                    parameter.data -= ETA * parameter.grad
            state = {name: value.clone() for name, value in module.state_dict().items()}
            kept[i] = {name: value for name, value in state.items() if name.startswith("norm")}
            states.append(state)
        everybody |= {n: p.mean([s[n] for s in states], cohort) for n in everybody if not n.startswith("norm")}
    for _ in range(ROUNDS):
        simulation.server.run_round()
    found = own(simulation)
    assert set(found) == set(range(len(p.sizes)))
    for client, model in found.items():
        for name, value in simulation.model.state_dict(model).items():
            if name != "norm.num_batches_tracked":  # a counter, which is nobody's
                expected = (everybody | kept.get(client, {}))[name]
                torch.testing.assert_close(value, expected, atol=1e-10, rtol=1e-8)
    assert not torch.equal(kept[p.cohorts[0][0]]["norm.running_mean"], everybody["norm.running_mean"])


def test_a_step_for_evaluation_is_taken_by_stragglers_too(make_problem):
    """The share of stragglers is of training; a single step for evaluation has nothing to leave out."""
    simulation, p = make_problem(algorithms.perfedavg(0.05), dataclasses.replace(LOCAL, straggler_share=0.5))
    assert len(own(simulation)) == len(p.sizes)


def test_clients_csv_reports_the_own_model(make_problem):
    simulation, p = make_problem(algorithms.ditto(0.4, 0.03), LOCAL)
    for _ in range(2):
        simulation.server.run_round()
    models = own(simulation)
    for client, row in enumerate(simulation.clients().itertuples()):
        assert row.loss == pytest.approx(float(p.loss(models[client], p.whole(client))))
        assert row.global_loss == pytest.approx(float(p.loss(simulation.server.vector, p.whole(client))))
