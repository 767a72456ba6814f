"""Federated algorithms, one small file each."""

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.fedavg import fedavg
from fedsim.algorithms.fedprox import fedprox

__all__ = ["Algorithm", "fedavg", "fedprox"]
