"""APFL: Deng, Kamani and Mahdavi 2020, "Adaptive Personalized Federated Learning", Algorithm 1 and equation 11.

Beside FedAvg's model w, each client has v, and steps it along the gradient of its loss at the mixture
a v + (1 - a) w with respect to v. The mixing weight a follows its own gradient <v - w, grad f(mixture)> and is kept in
[0, 1]. A client's own model is the mixture, with the global model for w.
"""

from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Kept


def _mixture(clients: Clients) -> Tensor:
    weight, own = clients.vectors["weight"], clients.vectors["own"][:, : clients.model.shape[1]]
    return weight * own + (1 - weight) * clients.model


def apfl(mixing_weight: float = 0.5, adaptive: bool = True) -> Algorithm:
    """FedAvg, and a model a client that is mixed with it.

    Args:
        mixing_weight: a at the start, in [0, 1].
        adaptive: let a change.
    """
    if not 0 <= mixing_weight <= 1:
        raise ValueError(f"algorithm.mixing_weight must be in [0, 1], got {mixing_weight}")

    def step(clients: Clients) -> None:
        size = clients.model.shape[1]
        own, mixture, weight = (clients.vectors[name] for name in ("own", "mixture", "weight"))
        mixture[:, :size] = _mixture(clients)
        mixture[:, size:] = own[:, size:]
        gradient = clients.gradient("mixture")
        own[:, size:] = mixture[:, size:]
        apart = ((own[:, :size] - clients.model) * gradient).sum(1, keepdim=True)
        clients.descend(clients.gradient())
        clients.descend(gradient.mul_(weight), "own")
        if adaptive:
            weight.sub_(apart, alpha=clients.learning_rate).clamp_(0.0, 1.0)

    def use_mixture(clients: Clients) -> None:
        size = clients.model.shape[1]
        clients.model.copy_(_mixture(clients))
        clients.buffers.copy_(clients.vectors["own"][:, size:])

    return Algorithm(
        name="apfl",
        step=step,
        keeps={"own": Kept(size="model", start="model"), "weight": Kept(size=1, start=mixing_weight)},
        works={"mixture": "model"},
        own=Algorithm(name="apfl_own", begin=use_mixture),
    )
