"""What an asynchronous server asks of a source of updates, and gets from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.transport.base import MakeJob, Transport


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A row of arrivals.csv: an update that the server has used.

    Attributes:
        round: whose step has used it.
        client: whose it is.
        version: of the model that it started from: the number of steps before.
        worker: who has trained it.
        seconds: when it came, counted from the beginning of the run.
        training_seconds: from when the worker was sent the client until its update was here.
    """

    round: int
    client: int
    version: int
    worker: str
    seconds: float
    training_seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffer:
    """The updates of one step.

    Attributes:
        arrived: (client, version) of each, in order.
        partials: their averages, version by version, rising; made one after another where they are trained now.
        needed: versions that others are still at work on.
        metrics: for the row of the round.
        rows: for arrivals.csv; none in virtual time, which follows from the seed.
    """

    arrived: list[tuple[int, int]]
    partials: Iterator[tuple[int, PartialAverage]]
    needed: set[int]
    metrics: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)


class Arrivals(Protocol):
    """Who arrives when. Up to `settle` the state is the one before the step."""

    @property
    def seconds(self) -> float:
        """Time so far: virtual, or real."""
        ...

    def first(self, num_updates: int, version: int) -> list[tuple[int, int]]:
        """(client, version) of clients like those who arrive next, to measure what training takes."""
        ...

    def collect(self, num_updates: int, version: int, make_job: MakeJob, transport: Transport) -> Buffer:
        """Wait for so many updates, the model being at `version` all the while.

        Raises:
            ValueError: they cannot be had.
        """
        ...

    def settle(self, version: int, make_job: MakeJob, transport: Transport) -> None:
        """The server has stepped along what `collect` found; its model is at `version` now."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        ...


def train(
    arrived: list[tuple[int, int]], make_job: MakeJob, transport: Transport
) -> Iterator[tuple[int, PartialAverage]]:
    """Train who has arrived: those of one version in one job."""
    for old in sorted({version for _, version in arrived}):
        clients = np.sort([client for client, version in arrived if version == old])
        yield old, transport.run_round(make_job(clients, old))
