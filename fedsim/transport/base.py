"""The one call between the server and whatever trains: `run_round(job) -> PartialAverage`."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from fedsim.aggregate import PartialAverage


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A round, or the share of it that one node trains.

    Attributes:
        round: from 1.
        cohort: (m,) int64 client indices.
        broadcast: (P + Q + ...,) the global vector that every client starts from, and behind it the server's
            vectors that the algorithm broadcasts.
        scale: grid of the online average (`fedsim.aggregate.weight_scale` of the whole cohort's weight).
        prelude: whether this is the pass that goes before the round's training (`Algorithm.prelude`).
    """

    round: int
    cohort: np.ndarray
    broadcast: Tensor
    scale: float
    prelude: bool = False


class Transport(Protocol):
    """Where rounds run. The server does not know which transport it has."""

    def run_round(self, job: Job) -> PartialAverage:
        """Train every client of the job and average their updates."""
        ...
