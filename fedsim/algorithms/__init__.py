"""Federated algorithms, one small file each."""

from fedsim.algorithms.agnostic import agnostic_fedavg
from fedsim.algorithms.apfl import apfl
from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.ditto import ditto
from fedsim.algorithms.fedasync import fedasync
from fedsim.algorithms.fedavg import fedavg
from fedsim.algorithms.fedbuff import fedbuff
from fedsim.algorithms.feddyn import feddyn
from fedsim.algorithms.fedexp import fedexp
from fedsim.algorithms.fednova import fednova
from fedsim.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedsim.algorithms.fedprox import fedprox
from fedsim.algorithms.fedsam import fedsam
from fedsim.algorithms.fedsgd import fedsgd
from fedsim.algorithms.ifca import ifca
from fedsim.algorithms.layers import fedbn, fedper, fedrep, lg_fedavg, local_only
from fedsim.algorithms.mime import mime, mimelite
from fedsim.algorithms.perfedavg import perfedavg
from fedsim.algorithms.pfedme import pfedme
from fedsim.algorithms.qfedavg import qfedavg
from fedsim.algorithms.scaffold import scaffold

__all__ = [
    "Algorithm",
    "agnostic_fedavg",
    "apfl",
    "ditto",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedavgm",
    "fedbn",
    "fedbuff",
    "feddyn",
    "fedexp",
    "fednova",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsam",
    "fedsgd",
    "fedyogi",
    "ifca",
    "lg_fedavg",
    "local_only",
    "mime",
    "mimelite",
    "perfedavg",
    "pfedme",
    "qfedavg",
    "scaffold",
]
