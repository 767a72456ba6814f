"""FedDyn: Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", Algorithm 1.

A client minimises its loss - <h_i, w> + (alpha / 2) ||w - w_global||^2, and then h_i <- h_i - alpha (w_i - w_global).
The server has h <- h - alpha / N times the sum of the updates, and w <- mean of the w_i - h / alpha. Every client
weighs the same.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Kept, Round, ServerState, Setup, equal_weights


def feddyn(regularisation: float = 0.01) -> Algorithm:
    """FedAvg with a regulariser that aligns the clients' optima with the global one.

    Args:
        regularisation: alpha, positive.
    """
    if not regularisation > 0:
        raise ValueError(f"algorithm.regularisation must be positive, got {regularisation}; for none use fedavg")

    def step(clients: Clients) -> None:
        gradient = clients.gradient().sub_(clients.vectors["gradient"])
        clients.descend(gradient.add_(clients.model - clients.start, alpha=regularisation))

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        clients.vectors["gradient"].sub_(clients.model - clients.start, alpha=regularisation)
        return {}

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        return {"gradient": torch.zeros_like(vector[: setup.num_parameters])}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        gradient = state["gradient"] - (regularisation * round.share * mean[:size]).to(vector.dtype)
        vector.add_(mean.to(vector.dtype))
        vector[:size] -= gradient / regularisation
        return {"gradient": gradient}

    return Algorithm(
        name="feddyn",
        step=step,
        finish=finish,
        keeps={"gradient": Kept()},
        weights=equal_weights,
        server_init=server_init,
        server_step=server_step,
    )
