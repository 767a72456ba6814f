"""FedSAM: Qu et al. 2022, "Generalized Federated Learning via Sharpness Aware Minimization", Algorithm 1.

Clients step along the gradient at w + rho g / ||g||, with g the gradient of the same minibatch at w.
"""

import torch

from fedsim.algorithms.base import Algorithm, Clients


def fedsam(radius: float = 0.05) -> Algorithm:
    """FedAvg with sharpness-aware local steps.

    Args:
        radius: rho, not negative; 0 is FedAvg.
    """
    if not radius >= 0:
        raise ValueError(f"algorithm.radius must not be negative, got {radius}")

    def step(clients: Clients) -> None:
        gradient = clients.gradient()
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        clients.descend(clients.gradient(gradient.mul_(radius / (norm + 1e-12)).add_(clients.model)))

    return Algorithm(name="fedsam", step=step)
