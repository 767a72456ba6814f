"""FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2.

Each client minimises its loss + (mu / 2) ||w - w_global||^2, whose gradient adds mu (w - w_global). The partial work of
its stragglers is `local.straggler_share`. The adaptive mu is that of the paper's figure 3: 0.1 more when the loss has
risen, 0.1 less when it has fallen five times in a row. The loss here is the mean over the samples that the round's
clients saw, each before its step; the paper's is over all clients, which nobody knows without a pass over them.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Round, ServerState, Setup

_STEP = 0.1
_PATIENCE = 5


def fedprox(proximal_weight: float = 0.01, adaptive: bool = False) -> Algorithm:
    """FedAvg with a proximal term.

    Args:
        proximal_weight: mu of the paper, not negative; 0 is FedAvg.
        adaptive: change mu by the loss, beginning with `proximal_weight`.
    """
    if not proximal_weight >= 0:
        raise ValueError(f"algorithm.proximal_weight must not be negative, got {proximal_weight}")

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient().add_(clients.model - clients.start, alpha=proximal_weight))

    if not adaptive:
        return Algorithm(name="fedprox", step=step)

    def adaptive_step(clients: Clients) -> None:
        weight = clients.server["proximal_weight"]
        clients.descend(clients.gradient().add_((clients.model - clients.start) * weight))

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        return {
            "proximal_weight": vector.new_tensor([proximal_weight]),
            "loss": torch.tensor([float("inf")], dtype=torch.float64),
            "falls": torch.zeros(1, dtype=torch.int64),
        }

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        loss = round.train_loss
        if loss is None:
            raise ValueError(
                "algorithm=fedprox algorithm.adaptive=true follows the clients' loss, which no noise hides, so no "
                "epsilon would hold: set algorithm.adaptive=false"
            )
        vector.add_(mean.to(vector.dtype))
        weight, before = state["proximal_weight"], float(state["loss"])
        falls = int(state["falls"]) + (loss < before < float("inf"))
        if loss > before:
            weight, falls = weight + _STEP, 0
        elif falls == _PATIENCE:
            weight, falls = (weight - _STEP).clamp(min=0.0), 0
        return {
            "proximal_weight": weight,
            "loss": torch.tensor([loss], dtype=torch.float64),
            "falls": torch.tensor([falls]),
        }

    return Algorithm(
        name="fedprox",
        step=adaptive_step,
        broadcast={"proximal_weight": 1},
        server_init=server_init,
        server_step=server_step,
    )
