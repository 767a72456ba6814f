"""q-FedAvg: Li et al. 2020, "Fair Resource Allocation in Federated Learning", Algorithm 2.

With F_k the client's loss at the global model w, L = 1 / eta and Dw_k = L (w - w_k), the server moves by
- sum_k F_k^q Dw_k / sum_k (q F_k^(q - 1) ||Dw_k||^2 + L F_k^q). Here both sums are divided by L and by the number of
clients. F_k is over the samples of the client's first pass, each at w, which costs a second forward and backward pass.
Clients weigh the same; the paper samples them by size instead, for which there is `sampler`.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Round, ServerState, equal_weights

_SMALLEST_LOSS = 1e-10  # a loss of zero has no power q - 1
_NEGATIVE = -1e18  # in the place of a sum of positive numbers, which tells the server of a negative loss


def qfedavg(fairness: float = 1.0) -> Algorithm:
    """FedAvg that minimises the sum of F_k^(q + 1) / (q + 1).

    Args:
        fairness: q, not negative; 0 is FedAvg with equal weights.
    """
    if not fairness >= 0:
        raise ValueError(f"algorithm.fairness must not be negative, got {fairness}")

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient())
        seen, loss = clients.vectors["seen"], clients.vectors["loss"]
        counts = clients.counts * (seen < clients.samples)
        loss.add_(counts * clients.loss(clients.start))
        seen.add_(counts)

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        mean = clients.vectors["loss"] / clients.vectors["seen"]
        loss = mean.clamp(min=_SMALLEST_LOSS)
        move = update[:, : clients.model.shape[1]]
        square = move.square().sum(1, keepdim=True)
        curvature = square / clients.learning_rate if clients.learning_rate else square  # 0 at a rate of 0
        estimate = loss**fairness + fairness * loss ** (fairness - 1) * curvature
        move *= loss**fairness
        return {"lipschitz": torch.where(mean < 0, _NEGATIVE, estimate)}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        if round.sums["lipschitz"].item() < 0:
            raise ValueError(
                "algorithm=qfedavg takes powers of the clients' losses, and one is negative: choose an objective whose "
                "losses are 0 or more, or another algorithm"
            )
        size = round.num_parameters
        vector[:size] += (mean[:size] / round.sums["lipschitz"]).to(vector.dtype)
        vector[size:] += mean[size:].to(vector.dtype)
        return state

    return Algorithm(
        name="qfedavg",
        step=step,
        finish=finish,
        works={"loss": 1, "seen": 1},
        sums={"lipschitz": 1},
        weights=equal_weights,
        server_step=server_step,
    )
