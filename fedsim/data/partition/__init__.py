"""Who owns which sample: the recipes that the configuration names, and the partition that they make.

A recipe is a frozen dataclass, the configuration's face of the functions in `fedsim.data.deal`. `recipe(dataset, seed)`
gives the dataset with its new owners; `recipe.partition(dataset, seed)` the `Partition`, which can be saved, hashed and
replayed. The same recipe, seed and data give the same partition, and the same digest, everywhere.

One rule for every sample, for every recipe: the pool is the training samples that somebody owns, or all of them where
nobody owns any. Each sample of the pool goes to one client, and there to training, or to what `holdout` sets aside of
that client for validation or test. A test set of the data's own becomes, or stays, central, unless the recipe keeps the
natural clients (`Natural`, `GroupedNatural`), whose test samples stay with them. Whatever is not used after that is
counted in the dataset's notes.
"""

from fedsim.data.deal import DirichletSizes, Exponential, LogNormal, Power
from fedsim.data.partition.features import FeatureNoise, Rotation
from fedsim.data.partition.from_file import FromFile
from fedsim.data.partition.holdout import Holdout
from fedsim.data.partition.natural import GroupedNatural, Natural
from fedsim.data.partition.recipes import (
    Continuous,
    Dirichlet,
    DirichletSized,
    Fcube,
    Iid,
    LabelSkew,
    Pathological,
    Shards,
)
from fedsim.data.partition.record import Partition
from fedsim.data.partition.scores import mean_input, target

__all__ = [
    "Continuous",
    "Dirichlet",
    "DirichletSized",
    "DirichletSizes",
    "Exponential",
    "Fcube",
    "FeatureNoise",
    "FromFile",
    "GroupedNatural",
    "Holdout",
    "Iid",
    "LabelSkew",
    "LogNormal",
    "Natural",
    "Partition",
    "Pathological",
    "Power",
    "Rotation",
    "Shards",
    "mean_input",
    "target",
]
