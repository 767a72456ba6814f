"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", Algorithm 1.

Clients step along g - c_i + c. Afterwards the control variate c_i becomes the gradient of the client's samples at the
global model (option I), or c_i - c + (x - y_i) / (K eta), the mean gradient of its K steps (option II). The server
moves by eta_g times the mean update, and c by |S| / N times the mean change of the c_i. Clients that are not sampled
keep theirs. As in the paper, every client weighs the same; with `weighted` the weights are samples, in the model's mean
and in c alike, so that the corrections still cancel in the mean. Departure: the paper has no momentum. With it the
correction goes through it too, and option II has FedNova's ||a||_1 in the place of K (`count_step`), so that c_i is a
mean of gradients again; divided by K it would be too large, and its error would grow in every round.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Kept, Round, ServerState, Setup, equal_weights
from fedsim.algorithms.effective_steps import count_step


def scaffold(option: int = 2, learning_rate: float = 1.0, weighted: bool = False) -> Algorithm:
    """FedAvg with control variates.

    Args:
        option: 1 or 2, of the paper's line 12. Option 1 computes a second gradient in every step; its gradient is
            over the samples of the client's first pass.
        learning_rate: eta_g of the server.
        weighted: weigh clients by samples.
    """
    if option not in (1, 2):
        raise ValueError(f"algorithm.option must be 1 or 2, got {option}")

    def step(clients: Clients) -> None:
        if clients.local.optimizer != "sgd" and option == 2:
            raise ValueError("algorithm=scaffold algorithm.option=2 takes SGD's steps for gradients: use local=sgd")
        clients.descend(clients.gradient().add_(clients.server["control"] - clients.vectors["control"]))
        if option == 1:
            counts = clients.counts * (clients.vectors["seen"] < clients.samples)
            clients.vectors["gradient"].add_(clients.gradient(clients.start).mul_(counts))
            clients.vectors["seen"].add_(counts)
        else:
            count_step(clients.vectors["effective_steps"], clients.vectors["momentum"], clients.local)

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        old = clients.vectors["control"]
        if option == 1:
            new = clients.vectors["gradient"] / clients.vectors["seen"]
        elif clients.learning_rate == 0:  # at the end of a schedule: a client that has not moved has learned nothing
            new = old.clone()
        else:
            moved = (clients.start - clients.model) / (clients.vectors["effective_steps"] * clients.learning_rate)
            new = old - clients.server["control"] + moved
        change = new - old
        old.copy_(new)
        return {"change": change}

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        return {"control": torch.zeros_like(vector[: setup.num_parameters])}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        vector[:size] += (learning_rate * mean[:size]).to(vector.dtype)
        vector[size:] += mean[size:].to(vector.dtype)
        return {"control": state["control"] + (round.share * round.sums["change"]).to(vector.dtype)}

    return Algorithm(
        name="scaffold",
        step=step,
        finish=finish,
        keeps={"control": Kept()},
        works={"gradient": "parameters", "seen": 1} if option == 1 else {"effective_steps": 1, "momentum": 1},
        sums={"change": "parameters"},
        broadcast={"control": "parameters"},
        weights=None if weighted else equal_weights,
        server_init=server_init,
        server_step=server_step,
    )
