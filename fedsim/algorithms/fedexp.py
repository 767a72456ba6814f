"""FedExP: Jhunjhunwala, Wang and Joshi 2023, "FedExP: Speeding Up Federated Averaging via Extrapolation", equation 5.

The server's learning rate is max(1, sum_i p_i ||D_i||^2 / (2 (||mean||^2 + epsilon))), with the updates D_i. The paper
reports the mean of the last two models; here it is the last one.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Round, ServerState


def fedexp(epsilon: float = 1e-3) -> Algorithm:
    """FedAvg that goes beyond the mean when the updates disagree.

    Args:
        epsilon: keeps the rate from growing without bound; not negative.
    """
    if not epsilon >= 0:
        raise ValueError(f"algorithm.epsilon must not be negative, got {epsilon}")

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        return {"squares": update[:, : clients.model.shape[1]].square().sum(1, keepdim=True)}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        square = mean[:size].square().sum()
        rate = torch.nan_to_num(round.sums["squares"] / (2 * (square + epsilon)), nan=1.0).clamp(min=1.0)
        vector[:size] += (rate * mean[:size]).to(vector.dtype)
        vector[size:] += mean[size:].to(vector.dtype)
        return state

    return Algorithm(name="fedexp", finish=finish, sums={"squares": 1}, server_step=server_step)
