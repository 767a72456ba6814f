"""FedAvg: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
Algorithm 1. Clients run local SGD; the server adds the mean update, weighted by the clients' samples."""

from fedsim.algorithms.base import Algorithm


def fedavg() -> Algorithm:
    """The defaults of `Algorithm`."""
    return Algorithm(name="fedavg")
