"""Mime and MimeLite with momentum: Karimireddy et al. 2021, "Mime: Mimicking Centralized Stochastic Algorithms in
Federated Learning", Algorithm 1 with the base optimizer SGDm.

Clients step along (1 - beta) g + beta m with a momentum m that stays fixed during the round. MimeLite has g = the
minibatch's gradient at y; Mime has its gradient at y - that at x + c, with c the mean of the cohort's full gradients at
the global model x. Afterwards m <- beta m + (1 - beta) c. c takes a pass over the cohort's samples before the round.
Means are weighted by samples; the paper's are not.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Round, ServerState, Setup


def _full_gradient() -> Algorithm:
    """The mean over the cohort of the gradients of all of a client's samples at the global model."""

    def step(clients: Clients) -> None:
        share = clients.counts / clients.samples
        clients.vectors["gradient"].add_(clients.gradient(clients.start).mul_(share))

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        return state | {"gradient": round.sums["gradient"].to(vector.dtype)}

    return Algorithm(
        name="full_gradient",
        step=step,
        finish=lambda clients, update: {"gradient": clients.vectors["gradient"]},
        works={"gradient": "parameters"},
        sums={"gradient": "parameters"},
        server_step=server_step,
    )


def mimelite(momentum: float = 0.9, learning_rate: float = 1.0) -> Algorithm:
    """Clients apply the server's momentum.

    Args:
        momentum: beta, in [0, 1); 0 is FedAvg.
        learning_rate: of the server, on the mean update.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"algorithm.momentum must be in [0, 1), got {momentum}")

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient().mul_(1 - momentum).add_(clients.server["momentum"], alpha=momentum))

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        zeros = torch.zeros_like(vector[: setup.num_parameters])
        return {"momentum": zeros, "gradient": zeros.clone()}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        vector[:size] += (learning_rate * mean[:size]).to(vector.dtype)
        vector[size:] += mean[size:].to(vector.dtype)
        return state | {"momentum": momentum * state["momentum"] + (1 - momentum) * state["gradient"]}

    return Algorithm(
        name="mimelite",
        step=step,
        prelude=_full_gradient(),
        broadcast={"momentum": "parameters"},
        server_init=server_init,
        server_step=server_step,
    )


def mime(momentum: float = 0.9, learning_rate: float = 1.0) -> Algorithm:
    """MimeLite whose gradients are corrected by the cohort's mean gradient (SVRG).

    Args:
        momentum: beta, in [0, 1).
        learning_rate: of the server, on the mean update.
    """

    def step(clients: Clients) -> None:
        gradient = clients.gradient().sub_(clients.gradient(clients.start)).add_(clients.server["gradient"])
        clients.descend(gradient.mul_(1 - momentum).add_(clients.server["momentum"], alpha=momentum))

    lite = mimelite(momentum, learning_rate)
    return replace(lite, name="mime", step=step, broadcast={"momentum": "parameters", "gradient": "parameters"})
