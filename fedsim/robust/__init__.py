"""Aggregators: the mean, which streams, and robust rules, which look at every update of a round."""

from fedsim.robust.base import Aggregator, mean
from fedsim.robust.coordinate import median, trimmed_mean
from fedsim.robust.distance import bulyan, krum, multi_krum
from fedsim.robust.norm import geometric_median, norm_bounding

__all__ = [
    "Aggregator",
    "bulyan",
    "geometric_median",
    "krum",
    "mean",
    "median",
    "multi_krum",
    "norm_bounding",
    "trimmed_mean",
]
