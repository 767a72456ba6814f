"""The server: the global model and the whole round loop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import OrderWatch, weight_scale
from fedsim.algorithms.base import Algorithm, Round, ServerState, Setup, lengths, split, step_server, weigh
from fedsim.clock import Clock
from fedsim.config import ScheduleConfig, ServerConfig
from fedsim.denormals import flushed_denormals
from fedsim.memory import peak_memory_bytes
from fedsim.sampling import Sampler, checked
from fedsim.transport.base import Job, Transport
from fedsim.uplink import Uplink

Metrics = dict[str, float]


class Server:
    """Owns what lasts from round to round: the global vector, the algorithm's vectors and the round's number.

    Attributes:
        moving: true from the moment when a round begins to change what lasts until all of it has changed. Where an
            interrupt leaves it true, the state is of no round: nobody may save it or go on from it.

    Args:
        vector: (P + Q,) initial global model; changed in place.
        num_parameters: P.
        sizes: (C,) training samples of each client.
        algorithm, sampler, transport: what to do, with whom, and where.
        draw: i -> (P + Q,) another initial model, for an algorithm that has several.
        message_bytes: to and from each client in a round.
        schedule: of the server's learning rate.
        seed: of the run.
        clock: who reports in time; None: everybody, and nobody looks at the time.
        uplink: the server's side of what happens to updates; None: they are averaged, and no more.
        settled: what clients have written in it lasts if it ends well (`ClientMemory.settled`).
    """

    def __init__(
        self,
        vector: Tensor,
        num_parameters: int,
        sizes: np.ndarray,
        *,
        algorithm: Algorithm,
        sampler: Sampler,
        transport: Transport,
        draw: Callable[[int], Tensor],
        message_bytes: tuple[int, int],
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        seed: int,
        clock: Clock | None = None,
        uplink: Uplink | None = None,
        settled: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.vector, self.num_parameters, self.sizes, self.seed = vector, num_parameters, sizes, seed
        self.algorithm, self.sampler, self.transport = algorithm, sampler, transport
        self.schedule, self.clock, self.uplink, self.settled = schedule, clock, uplink, settled
        self.state = algorithm.server_init(vector, Setup(num_parameters=num_parameters, sizes=sizes, draw=draw))
        self.round, self.moving, self.message_bytes = 0, False, message_bytes
        self.order = OrderWatch()

    @flushed_denormals()
    def run_round(self) -> Metrics:
        """One round: draw the cohort, train it, move the global model.

        After an error nothing has moved, nor what clients keep, unless the server itself was about to move (`moving`).
        """
        begin = time.perf_counter()
        round = self.round + 1
        cohort = checked(self.sampler(self.seed, round), len(self.sizes))
        outcome = None if self.clock is None else self.clock.round(round, cohort)
        max_steps = None
        if outcome is not None:
            cohort, max_steps = outcome.reported, outcome.max_steps
        if not self.sizes[cohort].any() and not (self.uplink and self.uplink.private):
            raise ValueError(f"round {round}: no client of the cohort has a training sample; sample more clients")
        state = self.state
        before: Metrics = {}
        timing: Metrics = {}
        with self.settled():
            if self.algorithm.prelude is not None:
                _, before, state = self._step(round, cohort, state, self.algorithm.prelude)
            update_norm, sums, self.state = self._step(round, cohort, state, self.algorithm, max_steps)
            self.round = round
            if self.clock is not None and outcome is not None:
                self.clock.seconds += outcome.seconds
                timing = self.clock.metrics(outcome)
            if self.uplink is not None:
                self.uplink.commit()
        self.moving = False
        bytes_down, bytes_up = (int(sums["clients"]) * size for size in self.message_bytes)
        return {
            "round": round,
            "train_loss": _mean_loss(sums),
            "update_norm": update_norm,
            "clients": int(sums["clients"]),
            "samples": int(sums["samples"]),
            "bytes_down": bytes_down,
            "bytes_up": bytes_up,
            **timing,  # with devices the model also goes to clients that do not report
            **({} if self.uplink is None else self.uplink.figures),
            "seconds": time.perf_counter() - begin,
            "peak_memory_bytes": peak_memory_bytes(self.vector.device),
            **_traffic(before, sums),
        }

    @property
    def broadcast(self) -> Tensor:
        """(P + Q + ...,) what clients see: the global model and the server's vectors."""
        return self._broadcast(self.state)

    def _broadcast(self, state: ServerState) -> Tensor:
        seen = [v.reshape(-1).to(self.vector.dtype) for v in self._seen(state).values()]
        return torch.cat([self.vector, *seen]) if seen else self.vector

    def _weight(self, clients: np.ndarray, state: ServerState) -> float:
        """Sum of the weights of those of the clients that have samples."""
        clients = clients[self.sizes[clients] > 0]
        if self.uplink is not None and self.uplink.equal_weights:
            return float(len(clients))
        return float(weigh(self.algorithm, clients, self.sizes[clients], self._seen(state)).sum())

    def _seen(self, state: ServerState) -> ServerState:
        """The server's vectors that clients see."""
        return {name: state[name] for name in self.algorithm.broadcast}

    def _job(
        self,
        round: int,
        cohort: np.ndarray,
        state: ServerState,
        record: Algorithm,
        max_steps: np.ndarray | None = None,
    ) -> Job:
        return Job(
            round=round,
            cohort=cohort,
            sizes=self.sizes[cohort],
            broadcast=self._broadcast(state),
            scale=weight_scale(self._weight(cohort, state)),
            prelude=record is not self.algorithm,
            max_steps=max_steps,
        )

    def next_job(self) -> Job:
        """The job of the next round, if somebody trains in it; else of the first round in which somebody does."""
        for round in range(self.round + 1, self.round + 1000):
            cohort = self.sampler(self.seed, round)
            if self.sizes[cohort].any():  # Poisson sampling may draw nobody
                return self._job(self.round + 1, cohort, self.state, self.algorithm)
        raise ValueError("no client that has a training sample is ever drawn; sample more clients")

    def _step(
        self,
        round: int,
        cohort: np.ndarray,
        state: ServerState,
        record: Algorithm,
        max_steps: np.ndarray | None = None,
    ) -> tuple[float, Metrics, ServerState]:
        """Train the cohort and let the server step: the mean update's norm, sums of metrics, and the new state."""
        weight = self._weight(cohort, state)
        if weight == 0:
            assert self.uplink is not None
            partial = self.uplink.empty()
        else:
            partial = self.transport.run_round(self._job(round, cohort, state, record, max_steps))
        sums, size = partial.metrics, len(self.vector)
        self.order.look(partial)
        mean = partial.take_mean() if self.uplink is None else self.uplink.close(partial, round, cohort)
        update_norm = torch.linalg.vector_norm(mean[: self.num_parameters]).item()
        if not math.isfinite(update_norm):
            raise ValueError(f"round {round}: the mean update is not finite; lower local.learning_rate")
        around = Round(
            number=round,
            num_parameters=self.num_parameters,
            sums=split(mean[size:], lengths(record.sums, self.num_parameters, size)),
            train_loss=None if self.uplink is not None and self.uplink.mechanism is not None else _mean_loss(sums),
            weight=weight if self.uplink is None else self.uplink.weight(weight),
            total=lambda: self._weight(np.arange(len(self.sizes)), state),
        )
        factor = self.schedule.at(round)
        before = None if factor == 1.0 else self.vector[: self.num_parameters].clone()
        self.moving = record is self.algorithm  # a prelude gives vectors, and moves no model
        state = step_server(record, self.vector, mean[:size], state, around)
        if before is not None:
            parameters = self.vector[: self.num_parameters]
            parameters.copy_(torch.lerp(before, parameters, factor))
        return update_norm, sums, state


class HasRounds(Protocol):
    """A server: synchronous or not."""

    round: int
    moving: bool

    def run_round(self) -> Metrics: ...


def refuse_half_a_round(server: HasRounds) -> None:
    """Do not go on from a state of no round.

    Raises:
        ValueError: the last round was broken off while it moved the model.
    """
    if server.moving:
        raise ValueError(
            f"round {server.round + 1} was broken off while it moved the model: continue from the last checkpoint "
            "(checkpoint.resume), or build the simulation anew"
        )


def rounds(server: HasRounds, config: ServerConfig, evaluate: Callable[[bool], Metrics]) -> Iterator[Metrics]:
    """Run to the last round; yields each round's metrics, with `evaluate(last)` in the rounds that are due."""
    while server.round < config.num_rounds:
        refuse_half_a_round(server)
        metrics = server.run_round()
        last = server.round == config.num_rounds
        if last or (config.evaluate_every and server.round % config.evaluate_every == 0):
            begin = time.perf_counter()
            metrics |= evaluate(last)
            metrics["evaluate_seconds"] = time.perf_counter() - begin
        yield metrics


def _traffic(*passes: Metrics) -> Metrics:
    """Bytes to and from each node below, over the passes of a round."""
    names = {name: 0 for sums in passes for name in sums if name.startswith(("bytes_up/", "bytes_down/"))}
    return {name: sum(int(sums.get(name, 0)) for sums in passes) for name in names}


def _mean_loss(sums: Metrics) -> float:
    """Over the samples seen; NaN where nobody came."""
    return sums["loss_sum"] / sums["samples"] if sums["samples"] else math.nan
