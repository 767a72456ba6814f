"""FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2.

Each client minimises its loss + (mu / 2) ||w - w_global||^2, whose gradient adds mu (w - w_global).
"""

from fedsim.algorithms.base import Algorithm, Clients


def fedprox(proximal_weight: float = 0.01) -> Algorithm:
    """FedAvg with a proximal term.

    Args:
        proximal_weight: mu of the paper, not negative; 0 is FedAvg.
    """
    if not proximal_weight >= 0:
        raise ValueError(f"algorithm.proximal_weight must not be negative, got {proximal_weight}")

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient().add_(clients.model - clients.start, alpha=proximal_weight))

    return Algorithm(name="fedprox", step=step)
