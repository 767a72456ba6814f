"""FedNova: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
equation 6.

A client's update is a weighted sum of its gradients, -eta sum_j a_j g_j. It is divided by ||a_i||_1, and the mean of
the quotients, with weights p_i by samples, is multiplied by tau_eff = sum_i p_i ||a_i||_1, so that clients with many
steps do not pull harder. ||a_i||_1 is what the local rule makes of gradients that are all 1: the number of steps for
plain SGD, and the paper's sums for momentum and for a proximal term mu, here together with Nesterov and weight decay.
The paper leaves tau_eff free; with this one, clients of equal steps give FedAvg.
"""

from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Round, ServerState
from fedsim.algorithms.effective_steps import count_step


def fednova(proximal_weight: float = 0.0) -> Algorithm:
    """FedAvg of normalised updates.

    Args:
        proximal_weight: mu of a proximal term as in FedProx; 0 for none.
    """
    if not proximal_weight >= 0:
        raise ValueError(f"algorithm.proximal_weight must not be negative, got {proximal_weight}")

    def step(clients: Clients) -> None:
        local = clients.local
        if local.optimizer != "sgd":
            raise ValueError("algorithm=fednova knows the effective steps of SGD alone: use local=sgd")
        gradient = clients.gradient()
        if proximal_weight:
            gradient.add_(clients.model - clients.start, alpha=proximal_weight)
        clients.descend(gradient)
        steps, momentum = clients.vectors["effective_steps"], clients.vectors["momentum"]
        count_step(steps, momentum, local, proximal_weight + local.weight_decay)

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        steps = clients.vectors["effective_steps"]
        update[:, : clients.model.shape[1]] /= steps
        return {"effective_steps": steps}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        vector[:size] += (mean[:size] * round.sums["effective_steps"]).to(vector.dtype)
        vector[size:] += mean[size:].to(vector.dtype)
        return state

    return Algorithm(
        name="fednova",
        step=step,
        finish=finish,
        works={"effective_steps": 1, "momentum": 1},
        sums={"effective_steps": 1},
        server_step=server_step,
    )
