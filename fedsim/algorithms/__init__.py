"""Federated algorithms, one small file each."""

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.fedasync import fedasync
from fedsim.algorithms.fedavg import fedavg
from fedsim.algorithms.fedbuff import fedbuff
from fedsim.algorithms.fedprox import fedprox

__all__ = ["Algorithm", "fedasync", "fedavg", "fedbuff", "fedprox"]
