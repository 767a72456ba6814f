"""What the trainers of a run are made from; they differ only in how they train."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsim.algorithms.base import Algorithm, update_size
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset
from fedsim.train.base import Trainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.uplink import Uplink
from fedsim.vector import FlatModel

_WHY = {
    "uplink": "which transforms, attacks and aggregators other than the mean need: leave them out, or let it take one",
    "sum_dtype": "which aggregator.dtype needs: set it to float64, or let it take one",
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Makes trainers.

    Attributes:
        dataset, model, algorithm, local, seed: of the run.
        uplink: where updates go; None: into their mean.
        sum_dtype: of the mean's running sum.
    """

    dataset: FederatedDataset
    model: FlatModel
    algorithm: Algorithm
    local: LocalConfig
    seed: int = 0
    uplink: Uplink | None = None
    sum_dtype: torch.dtype = torch.float64

    def update_size(self, *, prelude: bool = False) -> int:
        """Length of what a round, or its prelude, averages."""
        record = self.algorithm.prelude if prelude else self.algorithm
        assert record is not None, "this algorithm has no prelude"
        return update_size(record, self.model.layout)

    def trainer(self, factory: Callable[..., Trainer]) -> Trainer:
        """What `factory` makes. It hears of an uplink, or a dtype, only where the run has one of its own, so that a
        plain trainer need not know of them."""
        extra: dict[str, Any] = {}
        if self.uplink is not None:
            extra["uplink"] = self.uplink
        elif self.sum_dtype != torch.float64:
            extra["sum_dtype"] = self.sum_dtype
        try:
            return factory(self.dataset, self.model, self.algorithm, self.local, seed=self.seed, **extra)
        except TypeError as error:
            for name in extra:
                if f"unexpected keyword argument '{name}'" in str(error):
                    raise ValueError(f"this trainer takes no {name}=, {_WHY[name]}") from error
            raise

    def trial(self, factory: Callable[..., Trainer]) -> Trainer:
        """A trainer that takes as long, and as much, and whose rounds leave no trace in what clients keep or send."""
        trainer = replace(self, uplink=None).trainer(factory)
        if self.uplink is not None and isinstance(trainer, VectorizedTrainer):
            trainer.factorable = {}  # every update will be needed whole
        return trainer
