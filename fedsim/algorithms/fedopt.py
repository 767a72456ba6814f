"""Optimizers on the server.

FedAvgM: Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", section 4.3. FedAdagrad, FedAdam, FedYogi: Reddi et al. 2021, "Adaptive Federated Optimization",
Algorithm 2, without bias correction, and with v = tau^2 at the start. The mean update is the server's step. Running
statistics take the plain mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Round, ServerState, Setup


def _server(
    name: str,
    init: Callable[[Tensor], ServerState],
    rule: Callable[[Tensor, ServerState], tuple[Tensor, ServerState]],
) -> Algorithm:
    """FedAvg whose server moves the parameters by rule(mean update (P,), state)."""

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        return init(vector[: setup.num_parameters])

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        move, state = rule(mean[:size].to(vector.dtype), state)
        vector[:size] += move
        vector[size:] += mean[size:].to(vector.dtype)
        return state

    return Algorithm(name=name, server_init=server_init, server_step=server_step)


def _check(**values: float) -> None:
    for name, value in values.items():
        most = 1.0 if name in ("momentum", "beta1", "beta2") else float("inf")
        if not 0 <= value < most:
            raise ValueError(f"algorithm.{name} must be at least 0 and below {most:g}, got {value}")


def fedavgm(momentum: float = 0.9, learning_rate: float = 1.0, nesterov: bool = False) -> Algorithm:
    """FedAvg with momentum on the server: v <- beta v + mean, w <- w + eta v.

    Args:
        momentum: beta, in [0, 1); 0 with a learning rate of 1 is FedAvg.
        learning_rate: eta of the server.
        nesterov: w <- w + eta (mean + beta v) instead.
    """
    _check(momentum=momentum, learning_rate=learning_rate)

    def rule(mean: Tensor, state: ServerState) -> tuple[Tensor, ServerState]:
        velocity = momentum * state["momentum"] + mean
        move = mean + momentum * velocity if nesterov else velocity
        return learning_rate * move, {"momentum": velocity}

    return _server("fedavgm", lambda parameters: {"momentum": torch.zeros_like(parameters)}, rule)


def _adaptive(
    name: str,
    second: Callable[[Tensor, Tensor], Tensor],
    learning_rate: float,
    beta1: float,
    adaptivity: float,
) -> Algorithm:
    """w <- w + eta m / (sqrt(v) + tau), with m <- beta_1 m + (1 - beta_1) mean and v <- second(v, mean^2)."""
    _check(learning_rate=learning_rate, beta1=beta1)
    if not adaptivity > 0:
        raise ValueError(f"algorithm.adaptivity must be positive, got {adaptivity}")

    def rule(mean: Tensor, state: ServerState) -> tuple[Tensor, ServerState]:
        first = beta1 * state["first"] + (1 - beta1) * mean
        moment = second(state["second"], mean.square())
        return learning_rate * first / (moment.sqrt() + adaptivity), {"first": first, "second": moment}

    def init(parameters: Tensor) -> ServerState:
        return {"first": torch.zeros_like(parameters), "second": torch.full_like(parameters, adaptivity**2)}

    return _server(name, init, rule)


def fedadagrad(learning_rate: float = 0.1, beta1: float = 0.0, adaptivity: float = 1e-3) -> Algorithm:
    """FedAdagrad: v <- v + mean^2.

    Args:
        learning_rate: eta of the server.
        beta1: beta_1; the paper's experiments have 0.
        adaptivity: tau.
    """
    return _adaptive("fedadagrad", lambda v, square: v + square, learning_rate, beta1, adaptivity)


def fedadam(learning_rate: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, adaptivity: float = 1e-3) -> Algorithm:
    """FedAdam: v <- beta_2 v + (1 - beta_2) mean^2.

    Args:
        learning_rate: eta of the server.
        beta1, beta2: beta_1 and beta_2.
        adaptivity: tau.
    """
    _check(beta2=beta2)
    return _adaptive("fedadam", lambda v, square: beta2 * v + (1 - beta2) * square, learning_rate, beta1, adaptivity)


def fedyogi(learning_rate: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, adaptivity: float = 1e-3) -> Algorithm:
    """FedYogi: v <- v - (1 - beta_2) mean^2 sign(v - mean^2).

    Args:
        learning_rate: eta of the server.
        beta1, beta2: beta_1 and beta_2.
        adaptivity: tau.
    """
    _check(beta2=beta2)
    return _adaptive(
        "fedyogi", lambda v, square: v - (1 - beta2) * square * (v - square).sign(), learning_rate, beta1, adaptivity
    )
