"""The one call between the server and whatever trains: `run_round(job) -> PartialAverage`."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import ClientRows, OnlineAverage, PartialAverage, weight_scale


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A round, or the share of it that one node trains.

    Attributes:
        round: from 1.
        cohort: (m,) int64 client indices.
        sizes: (m,) int64 training samples of each.
        broadcast: (P + Q + ...,) the global vector that every client starts from, and behind it the server's
            vectors that the algorithm broadcasts.
        scale: grid of the online average (`fedsim.aggregate.weight_scale` of the whole cohort's weight).
        prelude: whether this is the pass that goes before the round's training (`Algorithm.prelude`).
        num_groups: client c belongs to group c modulo num_groups.
        group_rounds: rounds among themselves that the clients of a group do; 1 is a plain round, without groups.
        max_steps: (m,) int64 local steps after which each client stops; None: none stops early.
        rows: of a share for another node: the vectors that its clients have kept so far, by name.
        uplink: of such a share: what the server keeps for the transforms (`fedsim.uplink.pipeline`).
    """

    round: int
    cohort: np.ndarray
    sizes: np.ndarray
    broadcast: Tensor
    scale: float
    prelude: bool = False
    num_groups: int = 1
    group_rounds: int = 1
    max_steps: np.ndarray | None = None
    rows: Mapping[str, ClientRows] = field(default_factory=dict)
    uplink: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, chosen: np.ndarray) -> "Job":
        """The same for some clients, indices into the cohort or a mask; what they have kept is left behind."""
        max_steps = None if self.max_steps is None else self.max_steps[chosen]
        return replace(self, cohort=self.cohort[chosen], sizes=self.sizes[chosen], max_steps=max_steps, rows={})

    def groups(self) -> list["Job"]:
        """One job for each group that has a client with samples."""
        group = np.where(self.sizes > 0, self.cohort % self.num_groups, -1)
        return [replace(self.part(group == g), num_groups=1) for g in np.unique(group[group >= 0])]


MakeJob = Callable[[np.ndarray, int], Job]
"""(clients (m,) int64 rising, version of the model that they start from) -> their job, in an asynchronous run."""


class Transport(Protocol):
    """Where rounds run. The server does not know which transport it has."""

    def run_round(self, job: Job) -> PartialAverage:
        """Train every client of the job and average their updates."""
        ...

    def close(self) -> None:
        """End what the transport has started; it cannot run another round."""
        ...


def train_group(run_round: Callable[[Job], PartialAverage], job: Job) -> PartialAverage:
    """`group_rounds` rounds of FedAvg among the clients of one group, then one update of the whole group.

    HierFAVG: Liu et al. 2020, "Client-Edge-Cloud Hierarchical Federated Learning", Algorithm 1; group_rounds is
    kappa_2. The group's update counts with the samples of its clients. The minibatches of group round k of round r
    are those of a plain run's round (r - 1) group_rounds + k.
    """
    vector, weight = job.broadcast.clone(), float(job.sizes.sum())
    found, dtype = [], torch.float64
    for k in range(job.group_rounds):
        round = (job.round - 1) * job.group_rounds + k + 1
        inner = replace(job, round=round, broadcast=vector, scale=weight_scale(weight), group_rounds=1)
        partial = run_round(inner)
        vector.add_(partial.mean.to(vector.dtype))
        dtype = partial.total.dtype
        found.append(partial.metrics)
    average = OnlineAverage(len(vector), scale=job.scale, device=vector.device, dtype=dtype)
    average.add(vector, job.broadcast, weight)
    return average.result({**add_metrics(found), "clients": found[0]["clients"]})


def add_metrics(several: Iterable[dict[str, float]]) -> dict[str, float]:
    """Sums by name, rounded once."""
    terms: dict[str, list[float]] = {}
    for metrics in several:
        for name, value in metrics.items():
            terms.setdefault(name, []).append(value)
    return {name: math.fsum(values) for name, values in terms.items()}


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Hierarchical FedAvg on any transport: several group rounds before one global round (`train_group`)."""

    transport: Transport
    num_groups: int
    group_rounds: int

    def run_round(self, job: Job) -> PartialAverage:
        return self.transport.run_round(replace(job, num_groups=self.num_groups, group_rounds=self.group_rounds))

    def close(self) -> None:
        self.transport.close()
