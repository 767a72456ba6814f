"""FedProx's adaptive weight; its steps are compared with the paper's in test_textbook.py."""

import torch

from fedsim import algorithms
from fedsim.algorithms.base import Round
from fedsim.config import LocalConfig


def test_fedprox_lets_mu_follow_the_loss(make_problem):
    """Risen: 0.1 more. Fallen five times in a row: 0.1 less, and not below 0. The first loss has not fallen."""
    algorithm = algorithms.fedprox(0.15, adaptive=True)
    simulation, _ = make_problem(algorithm, LocalConfig())
    state, seen = simulation.server.state, []
    losses = (3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.6, 2.5, 2.4, 2.3, 2.4, 2.3, 2.2, 2.1, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4)
    for loss in losses:
        around = Round(number=1, num_parameters=52, sums={}, train_loss=loss, weight=1.0, total=lambda: 1.0)
        state = algorithm.server_step(simulation.server.vector, torch.zeros(52).double(), state, around)
        seen.append(round(float(state["proximal_weight"]), 6))
    assert seen == [0.15] * 5 + [0.05] + [0.15] * 4 + [0.25] * 5 + [0.15] * 5 + [0.05]
