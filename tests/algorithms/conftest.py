"""Logistic regression on six small clients, and what a paper's loop needs of it."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsim.algorithms import Algorithm
from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.initial_model import ModelFactory
from fedsim.models import logistic
from fedsim.simulation import Simulation
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer

SIZES = [12, 20, 7, 4, 16, 9]
Batch = tuple[Tensor, Tensor]


@dataclass
class Problem:
    """12 inputs, 4 classes: a model is a vector of 48 weights and 4 biases.

    Attributes:
        cohorts: the clients of each round.
        start: the initial model.
    """

    dataset: FederatedDataset
    local: LocalConfig
    cohorts: list[list[int]]
    start: Tensor
    sizes = SIZES

    def batches(self, client: int, round: int) -> Iterator[Batch]:
        """The client's minibatches, by a plan for this client alone."""
        plan = make_plan(self.dataset.train, np.array([client]), self.local, seed=0, round=round)
        for rows, count in zip(plan.rows[:, 0], plan.counts[:, 0], strict=True):
            kept = torch.from_numpy(rows[:count])
            yield self.dataset.train.inputs[kept], self.dataset.train.targets[kept]

    def whole(self, client: int) -> Batch:
        """All samples of a client."""
        rows = torch.from_numpy(self.dataset.train.rows(client))
        return self.dataset.train.inputs[rows], self.dataset.train.targets[rows]

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(batch[0] @ w[:48].view(4, 12).T + w[48:], batch[1])

    def grad(self, w: Tensor, batch: Batch) -> Tensor:
        w = w.detach().clone().requires_grad_()
        return torch.autograd.grad(self.loss(w, batch), w)[0]

    def weights(self, cohort: list[int]) -> list[float]:
        """Shares of the clients in the cohort's samples."""
        return [SIZES[i] / sum(SIZES[i] for i in cohort) for i in cohort]

    def mean(self, models: list[Tensor], cohort: list[int]) -> Tensor:
        return sum((q * m for q, m in zip(self.weights(cohort), models, strict=True)), torch.zeros(()))


@pytest.fixture
def make_problem(make_dataset) -> Callable[..., tuple[Simulation, Problem]]:
    dataset = make_dataset(SIZES)
    train = dataclasses.replace(dataset.train, inputs=dataset.train.inputs.double())
    dataset = dataclasses.replace(dataset, train=train, test=None)

    def make(
        algorithm: Algorithm, local: LocalConfig, factory: ModelFactory = logistic, clients: int = 4
    ) -> tuple[Simulation, Problem]:
        simulation = Simulation(
            dataset,
            lambda shape, classes: factory(shape, classes).double(),
            local=local,
            algorithm=algorithm,
            server=ServerConfig(num_rounds=3, clients_per_round=clients),
            trainer=SerialTrainer,
            device="cpu",
        )
        cohorts = [simulation.server.sampler(0, round).tolist() for round in (1, 2, 3)]
        return simulation, Problem(dataset, local, cohorts, simulation.server.vector.clone())

    return make
