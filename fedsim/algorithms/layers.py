"""Algorithms that keep some layers with the clients and average the rest.

FedBN: Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization".
FedPer: Arivazhagan et al. 2019, "Federated Learning with Personalization Layers".
FedRep: Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated Learning", Algorithm 1.
LG-FedAvg: Liang et al. 2020, "Think Locally, Act Globally: Federated Learning with Local and Global Representations".
Local training alone is the case where a client keeps every layer.
"""

from collections.abc import Sequence
from dataclasses import replace

from fedsim.algorithms.base import Algorithm, Clients
from fedsim.algorithms.personal import all_but, everything, keep, layers, normalisation


def fedbn() -> Algorithm:
    """Normalisation layers stay with the clients: their parameters and running statistics."""
    return keep("fedbn", normalisation)


def fedper(personal: Sequence[str] | None = None) -> Algorithm:
    """The head stays with the clients.

    Args:
        personal: names of parameters or layers that stay, or patterns as for files; None: the last layer.
    """
    return keep("fedper", layers(personal))


def lg_fedavg(shared: Sequence[str] | None = None) -> Algorithm:
    """The representation stays with the clients, and the head is averaged.

    Args:
        shared: names of parameters or layers that are averaged, or patterns as for files; None: the last layer.
    """
    return keep("lg_fedavg", all_but(layers(shared)))


def fedrep(personal: Sequence[str] | None = None, head_share: float = 0.5) -> Algorithm:
    """FedPer in which a client first trains its head on the global representation, and then the representation.

    Args:
        personal: names of parameters or layers that stay, or patterns as for files; None: the last layer.
        head_share: share of the local steps, from the first on, that move the head alone; the others move the rest
            alone. The paper has 10 epochs for the head and 1 for the rest.
    """
    if not 0 < head_share < 1:
        raise ValueError(f"algorithm.head_share must lie between 0 and 1, got {head_share}")

    def step(clients: Clients) -> None:
        assert clients.personal is not None
        head = clients.personal[: clients.model.shape[1]]
        # at least one step for the head, and the boundary on a whole step
        first = clients.taken < (head_share * clients.steps).ceil()
        gradient = clients.gradient()
        clients.descend(gradient.clone(), only=first & head, optimizer="head")
        clients.descend(gradient, only=~first & ~head, optimizer="representation")

    return replace(keep("fedrep", layers(personal)), step=step)


def local_only() -> Algorithm:
    """Every client trains a model of its own and no average is taken: the baseline of personalised learning.

    The global model stays as it was drawn.
    """
    return keep("local_only", everything)
