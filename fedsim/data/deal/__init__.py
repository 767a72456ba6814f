"""Dealing samples to clients: pure functions of (targets or scores, number or sizes of clients, generator).

One rule for every sample: it goes to exactly one client. Only given sizes that add up to less leave samples out, at
random, and `Deal.facts` counts them. Whatever cannot be done (a client or a class that would stay empty, more clients
than samples) is refused with the numbers that would work.

`fedsim.data.partition` holds the result, and the recipes that the configuration names.
"""

from fedsim.data.deal.base import Deal, ranges
from fedsim.data.deal.class_mixes import dirichlet_sized
from fedsim.data.deal.class_shares import dirichlet
from fedsim.data.deal.classes import label_skew, pathological, shards
from fedsim.data.deal.scores import continuous, octants
from fedsim.data.deal.sizes import DirichletSizes, Exponential, LogNormal, Power, SizeLaw, equal_sizes, iid

__all__ = [
    "Deal",
    "DirichletSizes",
    "Exponential",
    "LogNormal",
    "Power",
    "SizeLaw",
    "continuous",
    "dirichlet",
    "dirichlet_sized",
    "equal_sizes",
    "iid",
    "label_skew",
    "octants",
    "pathological",
    "ranges",
    "shards",
]
