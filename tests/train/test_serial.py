"""The serial trainer against the loop that everybody writes: deep copies, torch.optim.SGD, a list of state dicts."""

import copy
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.algorithms import fedprox
from fedsim.config import LocalConfig, ServerConfig
from fedsim.models import convnet2, leaf_cnn, logistic
from fedsim.simulation import Simulation
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.step import is_stochastic
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.vector import FlatModel

SIZES = [7, 23, 10, 1, 31, 16]


def minibatches(dataset, client, local, *, seed, round):
    """The client's minibatches, by a plan for this client alone."""
    plan = make_plan(dataset.train, np.array([client]), local, seed=seed, round=round)
    for rows, counts in zip(plan.rows, plan.counts, strict=True):
        kept = torch.from_numpy(rows[0, : counts[0]])
        yield dataset.preprocess(dataset.train.inputs[kept]), dataset.train.targets[kept]


def textbook(dataset, module, local, *, cohorts, seed, proximal_weight=0.0):
    """FedAvg (FedProx) as in McMahan et al. 2017, Algorithm 1, in plain PyTorch."""
    model = copy.deepcopy(module)
    for round, cohort in enumerate(cohorts, start=1):
        states, weights = [], []
        for client in cohort:
            local_model = copy.deepcopy(model).train()
            optimizer = torch.optim.SGD(
                local_model.parameters(),
                lr=local.learning_rate,
                momentum=local.momentum,
                weight_decay=local.weight_decay,
                nesterov=local.nesterov,
            )
            for x, y in minibatches(dataset, client, local, seed=seed, round=round):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(local_model(x), y)
                for p, g in zip(local_model.parameters(), model.parameters(), strict=True):
                    loss = loss + proximal_weight / 2 * ((p - g.detach()) ** 2).sum()
                loss.backward()
                if local.max_gradient_norm is not None:
                    nn.utils.clip_grad_norm_(local_model.parameters(), local.max_gradient_norm)
                optimizer.step()
            states.append(local_model.state_dict())
            weights.append(len(dataset.train.rows(client)))
        total = sum(weights)
        mean = {
            name: sum(s[name].double() * (w / total) for s, w in zip(states, weights, strict=True)).to(tensor.dtype)
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        }
        model.load_state_dict(mean, strict=False)
    return model


def cohorts_of(simulation, num_rounds):
    return [simulation.server.sampler(simulation.seed, r).tolist() for r in range(1, num_rounds + 1)]


PLAIN = LocalConfig(batch_size=8, learning_rate=0.1)
RICH = LocalConfig(
    batch_size=5,
    num_epochs=2,
    learning_rate=0.05,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-2,
    max_gradient_norm=0.5,
)
STEPS = LocalConfig(batch_size=6, num_steps=7, learning_rate=0.1, momentum=0.5)


HEAVY = LocalConfig(batch_size=8, learning_rate=0.1, momentum=0.9, weight_decay=1e-2)


class Moody(nn.Module):
    """In training its layer is called twice for a full minibatch of 8, not at all for one sample, else once."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.layer, self.head = nn.Linear(shape[0], shape[0]), nn.Linear(shape[0], num_classes)

    def forward(self, x):
        calls = {8: 2, 1: 0}.get(len(x), 1) if self.training else 1
        for _ in range(calls):
            x = self.layer(x).tanh()
        return self.head(x)


@pytest.mark.parametrize("min_product", [1, 1 << 18], ids=["products", "gradients"])
@pytest.mark.parametrize("local", [PLAIN, RICH, STEPS, HEAVY], ids=["plain", "rich", "steps", "heavy"])
@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (logistic, (12,)),
        (Moody, (12,)),
        (lambda s, c: leaf_cnn(s, c, hidden_size=32), (1, 8, 8)),
        (lambda s, c: convnet2(s, c, hidden_size=32), (1, 8, 8)),
    ],
    ids=["logistic", "moody", "cnn", "batch_norm"],
)
def test_equals_the_textbook_loop(make_dataset, factory, shape, local, min_product, monkeypatch):
    """Whether gradients of linear layers are written down, or added to their weights as they are computed."""
    monkeypatch.setattr("fedsim.train.serial._MIN_PRODUCT", min_product)
    dataset = make_dataset(SIZES, shape=shape)
    simulation = Simulation(
        dataset,
        factory,
        local=local,
        server=ServerConfig(num_rounds=3, clients_per_round=4),
        trainer=SerialTrainer,
        seed=3,
        device="cpu",
    )
    assert bool(simulation.trainer.plain.layers) == (min_product == 1)
    expected = textbook(
        dataset, copy.deepcopy(simulation.model.module), local, cohorts=cohorts_of(simulation, 3), seed=3
    ).state_dict()
    for _ in simulation.rounds():
        pass
    ours = simulation.model.state_dict(simulation.server.vector)
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


class Sums(nn.Module):
    """A weight that is a sum of two, whose gradients autograd gives as one tensor, and a bias in a sum: one element."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(num_classes, *shape) / 4) for _ in range(2))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        outputs = x @ (self.first + self.second).T
        return torch.cat([outputs[:, :1] + self.bias.sum(), outputs[:, 1:]], dim=1)


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=3)], ids=["serial", "slots"])
def test_gradients_that_share_memory_are_changed_once(make_dataset, trainer):
    """Weight decay, clipping and Nesterov's momentum change gradients in place."""
    dataset = make_dataset(SIZES)
    server = ServerConfig(num_rounds=2, clients_per_round=4)
    simulation = Simulation(dataset, Sums, local=RICH, server=server, trainer=trainer, seed=3, device="cpu")
    module = copy.deepcopy(simulation.model.module)
    expected = textbook(dataset, module, RICH, cohorts=cohorts_of(simulation, 2), seed=3)
    for _ in simulation.rounds():
        pass
    expected = torch.cat([p.detach().reshape(-1) for p in expected.parameters()])
    torch.testing.assert_close(simulation.server.vector, expected, atol=2e-6, rtol=1e-5)


def test_fedprox_equals_the_textbook_loop_and_weight_zero_is_fedavg(make_dataset):
    dataset = make_dataset(SIZES)
    settings = {"local": RICH, "server": ServerConfig(num_rounds=3, clients_per_round=4), "device": "cpu"}
    vectors = {}
    for weight in (None, 0.0, 0.5):
        algorithm = None if weight is None else fedprox(weight)
        simulation = Simulation(dataset, logistic, algorithm=algorithm, **settings)
        start = copy.deepcopy(simulation.model.module)
        for _ in simulation.rounds():
            pass
        vectors[weight] = simulation.server.vector
    expected = textbook(dataset, start, RICH, cohorts=cohorts_of(simulation, 3), seed=0, proximal_weight=0.5)
    expected = torch.cat([p.detach().reshape(-1) for p in expected.parameters()])
    torch.testing.assert_close(vectors[0.5], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(vectors[0.0], vectors[None], atol=1e-7, rtol=1e-6)
    assert (vectors[0.5] - vectors[None]).abs().max() > 1e-3


def test_full_batch_single_step_is_pooled_gradient_descent(make_dataset):
    """With one full-batch step a client, the weighted mean of the updates is the gradient of the pooled loss."""
    dataset = make_dataset(SIZES)
    local = LocalConfig(batch_size=None, learning_rate=0.3)
    server = ServerConfig(num_rounds=5, clients_per_round=len(SIZES))
    simulation = Simulation(dataset, logistic, local=local, server=server, device="cpu")
    pooled = copy.deepcopy(simulation.model.module)
    optimizer = torch.optim.SGD(pooled.parameters(), lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(pooled(dataset.train.inputs), dataset.train.targets).backward()
        optimizer.step()
    for _ in simulation.rounds():
        pass
    expected = torch.cat([p.detach().reshape(-1) for p in pooled.parameters()])
    torch.testing.assert_close(simulation.server.vector, expected, atol=1e-6, rtol=1e-5)


def test_train_loss_is_the_mean_over_the_samples_seen(make_dataset):
    dataset = make_dataset([40])
    local = LocalConfig(batch_size=None, learning_rate=0.0)
    simulation = Simulation(
        dataset, logistic, local=local, server=ServerConfig(num_rounds=1, clients_per_round=1), device="cpu"
    )
    with torch.no_grad():
        outputs = simulation.model.module(dataset.train.inputs)
    expected = nn.functional.cross_entropy(outputs, dataset.train.targets).item()
    metrics = simulation.server.run_round()
    assert metrics["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert (metrics["clients"], metrics["samples"], metrics["update_norm"]) == (1, 40, 0.0)


class Dropped(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(math.prod(shape), num_classes)

    def forward(self, x):
        return self.linear(self.drop(x))


class Noisy(nn.Module):
    """Draws without a layer that says so, and counts the calls in a buffer."""

    def __init__(self, shape, num_classes, draw=torch.rand_like):
        super().__init__()
        self.draw, self.linear = draw, nn.Linear(math.prod(shape), num_classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.linear(x + self.draw(x) if self.training else x)


def test_random_draws_are_found_in_any_model_and_the_search_leaves_no_trace(make_dataset):
    dataset = make_dataset(SIZES)
    found = []
    for module in (
        Noisy((12,), 4),
        Noisy((12,), 4, torch.zeros_like).train(False),
        Dropped((12,), 4),
        logistic((12,), 4),
    ):
        before = torch.random.get_rng_state()
        found.append(is_stochastic(FlatModel(module), dataset))
        assert torch.equal(before, torch.random.get_rng_state())
        assert getattr(module, "calls", 0) == 0
    assert found == [True, False, True, False]


@pytest.mark.parametrize(
    ("name", "draw"),
    [("random", lambda x: random.random()), ("numpy.random", lambda x: np.random.rand())],  # noqa: NPY002
)
def test_draws_that_cannot_be_seeded_are_refused(make_dataset, name, draw):
    with pytest.raises(ValueError, match=rf"Noisy draws from {name} in training, which a run cannot seed"):
        is_stochastic(FlatModel(Noisy((12,), 4, draw)), make_dataset(SIZES))


@pytest.mark.parametrize("factory", [Dropped, Noisy])
def test_dropout_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(make_dataset, factory):
    dataset = make_dataset(SIZES)
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        server = ServerConfig(num_rounds=2, clients_per_round=3)
        simulation = Simulation(dataset, factory, local=PLAIN, server=server, trainer=SerialTrainer, device="cpu")
        for _ in simulation.rounds():
            pass
        assert torch.equal(before, torch.random.get_rng_state())
        runs.append(simulation.server.vector)
    assert torch.equal(*runs)


@pytest.mark.parametrize("what", ["loss", "update"])
def test_a_client_that_is_not_finite_is_named_and_nothing_moves(make_dataset, what):
    dataset = make_dataset([20, 20])
    local = LocalConfig(batch_size=10 if what == "loss" else None, num_epochs=1, learning_rate=1e30)
    simulation = Simulation(
        dataset,
        lambda s, c: leaf_cnn((1, 4, 4), c, hidden_size=8) if len(s) == 3 else logistic(s, c),
        local=local,
        server=ServerConfig(num_rounds=1, clients_per_round=2),
        device="cpu",
    )
    before = simulation.server.vector.clone()
    with torch.no_grad():
        dataset.train.inputs[0] = 1e20
    with pytest.raises(ValueError, match=rf"round 1: the {what} of client 0 \(client_0\) is not finite.*learning_rate"):
        simulation.server.run_round()
    assert torch.equal(simulation.server.vector, before)
    assert simulation.server.round == 0
