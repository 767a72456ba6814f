"""Strongly convex problems whose optimum is known: FedAvg ends beside it, SCAFFOLD, FedDyn and Mime reach it.

`python -m pytest -n 0 -s tests/algorithms/test_optimum.py` prints the figures of docs/algorithms.md.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import algorithms
from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer

HETEROGENEOUS = {
    "fedavg": algorithms.fedavg,
    "scaffold": algorithms.scaffold,
    "feddyn": lambda: algorithms.feddyn(0.3),
    "mime": lambda: algorithms.mime(0.0),
}
SIZES = [12, 20, 7, 4, 16, 9]
STEPS, RATE = 10, 0.3


class Quadratic(nn.Module):
    """A sample (h, a) (2, 5) costs q = sum_j h_j (w_j - a_j)^2 / 2 + 1.

    fedsim's loss is the cross-entropy, here against class 0: log(1 + exp(-z)) = q at z = -log(exp(q) - 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        q = (x[:, 0] * (self.w - x[:, 1]).square()).sum(1) / 2 + 1
        z = -torch.log(torch.expm1(q))
        return torch.stack([z, torch.zeros_like(z)], 1)


def quadratics() -> tuple[FederatedDataset, Tensor, Tensor]:
    """Six clients, and the curvature and the minimum of each one's loss, both (6, 5).

    Curvatures are a client's own, from 0.1 to 2; minima are about 1 apart.
    """
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(6), SIZES)
    h = np.exp(rng.uniform(np.log(0.1), np.log(2), (6, 5)))[owner] * rng.uniform(0.8, 1.2, (len(owner), 5))
    a = rng.normal(size=(6, 5))[owner] + rng.normal(size=(len(owner), 5)) * 0.1
    samples = torch.from_numpy(np.stack([h, a], 1))
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    split = Split(inputs=samples, targets=torch.zeros(len(owner), dtype=torch.int64), offsets=offsets)
    dataset = FederatedDataset(
        name="quadratics", train=split, client_ids=[f"client_{i}" for i in range(6)], num_classes=2
    )
    own = samples.split(SIZES)
    curvature = torch.stack([x[:, 0].mean(0) for x in own])
    minimum = torch.stack([(x[:, 0] * x[:, 1]).mean(0) for x in own]) / curvature
    return dataset, curvature, minimum


@pytest.mark.parametrize("name", HETEROGENEOUS)
def test_quadratics(name):
    """Ten full-batch steps of rate r take a client from w to a + (1 - r h)^10 (w - a), in each coordinate.

    So FedAvg's rounds end where w = sum_i p_i (1 - k_i) a_i / sum_i p_i (1 - k_i), k_i = (1 - r h_i)^10, whereas the
    mean loss is least at sum_i p_i h_i a_i / sum_i p_i h_i; p_i is the client's weight.
    """
    dataset, curvature, minimum = quadratics()
    simulation = Simulation(
        dataset,
        lambda shape, classes: Quadratic(),
        local=LocalConfig(batch_size=None, num_steps=STEPS, learning_rate=RATE),
        algorithm=HETEROGENEOUS[name](),
        server=ServerConfig(num_rounds=100, clients_per_round=6),
        trainer=SerialTrainer,
        device="cpu",
    )
    weights = torch.tensor(SIZES).double() if simulation.algorithm.weights is None else torch.ones(6).double()
    weights = weights[:, None] / weights.sum()

    def centre(pull: Tensor) -> Tensor:
        return (weights * pull * minimum).sum(0) / (weights * pull).sum(0)

    optimum = centre(curvature)
    distances = {}
    for round in range(1, 101):
        simulation.server.run_round()
        if round in (5, 20, 100):
            distances[round] = float((simulation.server.vector - optimum).norm() / optimum.norm())
    print(f"\nquadratics, {name}: " + ", ".join(f"{d:.1e} after {r} rounds" for r, d in distances.items()))
    if name == "fedavg":
        torch.testing.assert_close(simulation.server.vector, centre(1 - (1 - RATE * curvature) ** STEPS))
        assert distances[100] > 0.1
    else:
        assert distances[100] < 1e-6


@pytest.mark.parametrize("nesterov", [False, True])
def test_scaffold_reaches_the_optimum_with_momentum(nesterov):
    """Momentum 0.9 and ten steps: ||a||_1 = sum_j (1 - 0.9^j) / 0.1 = 41. In a flat direction a control variate that
    is divided by K = 10 in its place has its error multiplied by 1 - 4.1 in each round."""
    dataset, curvature, minimum = quadratics()
    simulation = Simulation(
        dataset,
        lambda shape, classes: Quadratic(),
        local=LocalConfig(batch_size=None, num_steps=STEPS, learning_rate=0.05, momentum=0.9, nesterov=nesterov),
        algorithm=algorithms.scaffold(),
        server=ServerConfig(num_rounds=50, clients_per_round=6),
        trainer=SerialTrainer,
        device="cpu",
    )
    optimum = (curvature * minimum).sum(0) / curvature.sum(0)
    for _ in range(50):
        simulation.server.run_round()
    assert (simulation.server.vector - optimum).norm() < 1e-2 * optimum.norm()


@pytest.mark.parametrize("name", HETEROGENEOUS)
def test_logistic_regression_with_weight_decay(make_problem, name):
    """Strongly convex: logistic regression with weight decay. Each client has one class or two; ten full-batch steps.

    The optimum of the pooled loss, every client's mean loss weighing the same or by samples as in the algorithm, comes
    from Newton's method. All clients train in every round.
    """
    decay = 0.1
    local = LocalConfig(batch_size=None, num_steps=10, learning_rate=0.3, weight_decay=decay)
    simulation, p = make_problem(HETEROGENEOUS[name](), local, clients=6)
    train, size = simulation.dataset.train, sum(p.sizes)
    order = train.targets[:size].argsort()
    train.inputs[:size], train.targets[:size] = train.inputs[:size][order], train.targets[:size][order]
    weights = p.weights(range(6)) if simulation.algorithm.weights is None else [1 / 6] * 6

    def objective(w):
        losses = [q * p.loss(w, p.whole(i)) for i, q in enumerate(weights)]
        return sum(losses) + decay / 2 * w.square().sum()

    w = torch.zeros(52).double()
    for _ in range(20):
        v = w.clone().requires_grad_()
        slope = torch.autograd.grad(objective(v), v)[0]
        w = w - torch.linalg.solve(torch.autograd.functional.hessian(objective, w), slope)
    for _ in range(25):
        simulation.server.run_round()
    distance = float((simulation.server.vector - w).norm() / w.norm())
    if name == "fedavg":
        assert distance > 0.05
    else:
        assert distance < 1e-3
