"""Ditto: Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", Algorithm 1.

Beside FedAvg, each client trains a model v of its own on its loss + (lambda / 2) ||v - w_global||^2, on the same
minibatches. A client that trains for the first time begins with the global model of that round.
"""

from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Kept


def use_own(clients: Clients) -> None:
    """The model becomes the kept vector "own"."""
    size = clients.model.shape[1]
    clients.model.copy_(clients.vectors["own"][:, :size])
    clients.buffers.copy_(clients.vectors["own"][:, size:])


def ditto(proximal_weight: float = 0.1, learning_rate: float | None = None) -> Algorithm:
    """FedAvg, and a model a client that stays near it.

    Args:
        proximal_weight: lambda, not negative; 0: the clients' models never hear of the global one.
        learning_rate: of the clients' own models; None: that of `local`.
    """
    if not proximal_weight >= 0:
        raise ValueError(f"algorithm.proximal_weight must not be negative, got {proximal_weight}")

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient())
        own = clients.vectors["own"][:, : clients.model.shape[1]]
        gradient: Tensor = clients.gradient("own").add_(own - clients.start, alpha=proximal_weight)
        clients.descend(gradient, "own", learning_rate=learning_rate)

    return Algorithm(
        name="ditto",
        step=step,
        keeps={"own": Kept(size="model", start="model")},
        own=Algorithm(name="ditto_own", begin=use_own),
    )
