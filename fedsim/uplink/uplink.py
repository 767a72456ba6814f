"""Uplink: the way of updates in one run.

    update -> attack -> transforms, in their order -> mean as they come, or kept for a robust rule     (clients' side)
    mean -> transforms' server side, such as noise -> server step; then what the transforms keep moves  (server's side)

A plain run has no uplink, and its trainers fuse what they can. Nothing that lasts (clients' memories, clipping norms)
moves before the round has ended well: `commit`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.attacks import Attack
from fedsim.client_state import ClientVectors
from fedsim.privacy import NEIGHBOURS, Accountant
from fedsim.robust.base import Aggregator
from fedsim.sampling import RandomSampler, Sampler
from fedsim.transforms.base import Transform
from fedsim.uplink.mechanism import mechanism_of
from fedsim.uplink.pipeline import Pipeline
from fedsim.uplink.receiver import Receiver


class Uplink:
    """Attack, transforms, aggregator and privacy of a run.

    Args:
        transforms: in the order in which they change an update.
        aggregator: how updates become one.
        attack: None where all clients are honest.
        sampler: of the run; a private run must know its law.
        num_clients: C.
        size: elements of an update: P + Q, and behind them what the algorithm averages beside it.
        personal: (size,) bool, the elements that stay with a client: they are no part of what is sent. None: there are
            none.
        like: for the dtype and the device of updates.
        seed: of the run.

    Attributes:
        size: elements that are sent.

    Raises:
        ValueError: parts that do not fit each other.
    """

    def __init__(
        self,
        *,
        transforms: Sequence[Transform] = (),
        aggregator: Aggregator,
        attack: Attack | None = None,
        sampler: Sampler,
        num_clients: int,
        size: int,
        personal: Tensor | None = None,
        like: Tensor,
        seed: int,
    ) -> None:
        self.sent = None if personal is None else (~personal).nonzero()[:, 0]
        self.whole, self.size = size, size if self.sent is None else len(self.sent)
        self.aggregator, self.attack, self.like = aggregator, attack, like
        self.attackers = set() if attack is None else set(attack.attackers(num_clients, seed).tolist())
        self.pipeline = Pipeline(transforms, size=self.size, like=like, seed=seed)
        self.figures: dict[str, float] = {}  # metrics of the last round
        self.mechanism = mechanism_of(transforms, aggregator, sampler, num_clients)
        self.accountant = None if self.mechanism is None else Accountant(self.mechanism)
        # privacy fixes the number that the sum is divided by, whoever came
        self.private = self.mechanism is not None and self.mechanism.scheme != "local"
        if isinstance(sampler, RandomSampler) and sampler.scheme != "poisson":
            aggregator.require(int(sampler.cohort_size))
        self.times = np.zeros(num_clients, np.int64)  # how often each client has taken part
        self.next_times = self.times
        self.in_pieces = False  # trainers train shares of a round, which somebody puts together

    @property
    def equal_weights(self) -> bool:
        """Whether every client counts the same: privacy bounds what one of them may do."""
        return self.aggregator.equal_weights or self.private

    @property
    def memories(self) -> list[ClientVectors]:
        """What the clients keep, for checkpoints and budgets."""
        return [memory for memory in self.pipeline.memories if memory is not None]

    @property
    def bytes_per_update(self) -> int:
        """Of a client's message."""
        return self.pipeline.bytes_per_update

    @property
    def forwards(self) -> bool:
        """Whether updates leave a worker one by one: a rule, or attackers who collude, must see those of all."""
        return self.aggregator.rule is not None or (self.attack is not None and self.attack.collude is not None)

    @contextmanager
    def pieces(self) -> Iterator[None]:
        """In it trainers train pieces of rounds; who collects them begins with `collect`."""
        before, self.in_pieces = self.in_pieces, True
        try:
            yield
        finally:
            self.in_pieces = before

    def open(self, round: int, clients: np.ndarray, scale: float) -> Receiver:
        """Begin a round, or a piece of one, for these clients (m,); `scale` is the grid of the average."""
        self.pipeline.begin(clients if self.in_pieces else None)
        return self._receiver(round, clients, scale, piece=self.in_pieces)

    def collect(self, round: int, clients: np.ndarray, scale: float) -> Receiver:
        """Begin a round for these clients (m,) whose pieces come from elsewhere (`Receiver.merge`)."""
        self.pipeline.begin()
        return self._receiver(round, clients, scale, piece=False)

    def _receiver(self, round: int, clients: np.ndarray, scale: float, *, piece: bool) -> Receiver:
        return Receiver(
            self.pipeline,
            self.aggregator,
            self.attack,
            self.attackers,
            round=round,
            clients=clients,
            size=self.size,
            sent=self.sent,
            like=self.like,
            scale=scale,
            equal_weights=self.equal_weights,
            piece=piece,
        )

    def weight(self, came: float) -> float:
        """The weight that the mean stands for: of the clients that came, or, where privacy hides how many these were,
        of those that were expected."""
        return self.mechanism.cohort_size if self.private and self.mechanism is not None else came

    def empty(self) -> PartialAverage:
        """What a round gives in which nobody came: privately that too is a round, and its noise hides it."""
        self.pipeline.begin()
        total = torch.zeros(self.size, dtype=self.aggregator.dtype, device=self.like.device)
        sums = {"loss_sum": 0.0, "samples": 0.0, "clients": 0.0}
        return PartialAverage(total=total, weight=1.0, scale=1.0, metrics=sums)

    def close(self, partial: PartialAverage, round: int, cohort: np.ndarray) -> Tensor:
        """The server's side: the mean (P + Q + ...,) that moves the model, in the place of the total."""
        mean, cohort_size = partial.take_mean(), float(len(cohort))
        if self.private:
            cohort_size = self.weight(partial.weight)
            mean *= partial.weight / cohort_size
        mean, self.figures = self.pipeline.close(mean, partial.metrics, round=round, cohort_size=cohort_size)
        if self.attack is not None:
            self.figures["attackers"] = len(self.attackers.intersection(cohort.tolist()))
        self.next_times = self.times.copy()
        self.next_times[cohort] += 1
        if self.accountant is not None:
            self.figures["epsilon"] = self._epsilon(self.accountant, round, self.next_times)
        if self.sent is None:
            return mean
        return mean.new_zeros(self.whole).index_copy_(0, self.sent, mean)

    def _epsilon(self, accountant: Accountant, round: int, times: np.ndarray) -> float:
        """After this round: of the run, or of the client that took part most often, where each protects itself."""
        return accountant.epsilon(round if self.private else int(times.max()))

    def commit(self) -> None:
        """The round has ended well: what lasts may move."""
        self.times = self.next_times
        self.pipeline.commit()

    def snapshot(self) -> dict[str, Tensor]:
        """All that lasts but `memories`, by name, for a checkpoint."""
        return {"times": torch.from_numpy(self.times), **self.pipeline.snapshot()}

    def restore(self, found: dict[str, Tensor]) -> None:
        """Continue from a `snapshot`."""
        self.times = self.next_times = found["times"].cpu().numpy().copy()
        self.pipeline.restore(found)

    def summary(self, round: int) -> dict[str, Any]:
        """For summary.json, after this round."""
        about: dict[str, Any] = {
            "aggregator": self.aggregator.name,
            "transforms": [t.name for t in self.pipeline.transforms],
            "bytes_per_update": self.bytes_per_update,
        }
        if self.attack is not None:
            about["attack"] = {"name": self.attack.name, "attackers": sorted(self.attackers)}
        if self.mechanism is not None and self.accountant is not None:
            about["privacy"] = {
                "epsilon": self._epsilon(self.accountant, round, self.times),
                "delta": self.mechanism.delta,
                "noise_multiplier": self.mechanism.noise_multiplier,
                "sampling": self.mechanism.scheme,
                "neighbours": NEIGHBOURS[self.mechanism.scheme],
                "accountant": "dp-accounting, RDP",
            }
        return about
