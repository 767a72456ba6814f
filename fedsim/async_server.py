"""The asynchronous server: it steps when enough updates have arrived, whatever models these started from."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import OrderWatch, weight_scale
from fedsim.algorithms.base import Algorithm, Round, Setup
from fedsim.client_state import ClientVectors
from fedsim.config import ScheduleConfig
from fedsim.denormals import flushed_denormals
from fedsim.events import Queue
from fedsim.memory import peak_memory_bytes
from fedsim.transport.base import Job, Transport


class AsyncServer:
    """Owns the global model, the older versions of it that clients are at work on, and the event queue.

    A round is a step of the server, and the version of a model the number of steps that made it. What a client learns
    is a function of (seed, version, client): the clients whose updates are used in one step are trained when the step
    is due, those of one version in one job. Neither this nor the number of slots changes what each one learns.

    Args:
        vector: (P + Q,) initial global model; changed in place.
        num_parameters: P.
        sizes: (C,) training samples of each client.
        algorithm: with `asynchronous`.
        queue: who arrives when.
        transport: where clients train.
        draw: i -> (P + Q,) another initial model, for an algorithm that has several.
        schedule: of the server's learning rate: a factor on the mean that it steps along.
    """

    def __init__(
        self,
        vector: Tensor,
        num_parameters: int,
        sizes: np.ndarray,
        *,
        algorithm: Algorithm,
        queue: Queue,
        transport: Transport,
        draw: Callable[[int], Tensor],
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
    ) -> None:
        assert algorithm.asynchronous is not None
        self.how, self.schedule = algorithm.asynchronous, schedule
        if algorithm.keeps or algorithm.sums or algorithm.broadcast or algorithm.prelude:
            raise ValueError(
                f"algorithm={algorithm.name} exchanges more than models and updates, which asynchronous runs do not do"
            )
        able = int((queue.work > 0).sum())
        if self.how.buffer_size > able:
            raise ValueError(
                f"algorithm.buffer_size={self.how.buffer_size}, but {able} clients have training samples, and none "
                "trains twice from one version; take a smaller buffer"
            )
        self.vector, self.num_parameters, self.sizes = vector, num_parameters, sizes
        self.algorithm, self.clock, self.transport = algorithm, queue, transport
        self.versions = ClientVectors(len(vector), name="versions", dtype=vector.dtype, device=vector.device)
        self.state = algorithm.server_init(vector, Setup(num_parameters=num_parameters, sizes=sizes, draw=draw))
        self.round, self.moving = 0, False
        self.order = OrderWatch()

    @flushed_denormals()
    def run_round(self) -> dict[str, float]:
        """Wait for a buffer of updates and step. After an error in training nothing has moved; see `Server.moving`."""
        begin = time.perf_counter()
        version, queue = self.round, self.clock.copy()
        sent = queue.run(self.how.buffer_size, version)
        weight = self._weight(np.array([client for client, _ in queue.arrived]))
        mean, sums = self._train(queue.arrived, version, weight)
        update_norm = torch.linalg.vector_norm(mean[: self.num_parameters]).item()
        if not math.isfinite(update_norm):
            raise ValueError(f"round {version + 1}: the mean update is not finite; lower local.learning_rate")
        stale = [version - started_from for _, started_from in queue.arrived]
        queue.arrived.clear()
        needed = queue.versions()
        self.moving = True
        self.versions.forget(np.setdiff1d(self.versions.written, list(needed)))
        if version in needed:
            self.versions.write(np.array([version]), self.vector[None])
        self.versions.commit()
        around = Round(
            number=version + 1,
            num_parameters=self.num_parameters,
            sums={},
            train_loss=sums["loss_sum"] / sums["samples"],
            weight=weight,
            total=lambda: self._weight(np.arange(len(self.sizes))),
        )
        mean[: self.num_parameters] *= self.schedule.at(version + 1)
        self.state = self.algorithm.server_step(self.vector, mean, self.state, around)
        self.round, self.clock, self.moving = version + 1, queue, False
        return {
            "round": self.round,
            "train_loss": sums["loss_sum"] / sums["samples"],
            "update_norm": update_norm,
            "clients": int(sums["clients"]),
            "samples": int(sums["samples"]),
            "staleness_mean": sum(stale) / len(stale),
            "staleness_max": max(stale),
            "virtual_seconds": queue.seconds,
            **sent,
            "seconds": time.perf_counter() - begin,
            "peak_memory_bytes": peak_memory_bytes(self.vector.device),
        }

    def next_job(self) -> Job:
        """The largest job of the next round."""
        queue = self.clock.copy()
        queue.run(self.how.buffer_size, self.round)
        jobs = self._jobs(queue.arrived, self._weight(np.array([client for client, _ in queue.arrived])))
        return max((job for _, job in jobs), key=lambda job: len(job.cohort))

    def _jobs(self, arrived: list[tuple[int, int]], weight: float) -> Iterator[tuple[int, Job]]:
        """The versions that clients started from, rising, each with the job of its clients."""
        for old in sorted({started_from for _, started_from in arrived}):
            clients = np.sort([client for client, started_from in arrived if started_from == old])
            broadcast = self.vector if old == self.round else self.versions.read(np.array([old]))[0]
            yield (
                old,
                Job(
                    round=old + 1,
                    cohort=clients,
                    sizes=self.sizes[clients],
                    broadcast=broadcast,
                    scale=weight_scale(weight),
                ),
            )

    def _weight(self, clients: np.ndarray) -> float:
        """Sum of the weights of those of the clients that have samples."""
        clients = clients[self.sizes[clients] > 0]
        samples = self.sizes[clients].astype(np.float64)
        weights = self.algorithm.weights
        return float((samples if weights is None else weights(clients, samples, {})).sum())

    def _train(self, arrived: list[tuple[int, int]], version: int, weight: float) -> tuple[Tensor, dict[str, float]]:
        """The float64 (P + Q,) by which the model is to move, and sums of the clients' metrics."""
        mean = torch.zeros_like(self.vector, dtype=torch.float64)
        sums: dict[str, float] = {}
        for old, job in self._jobs(arrived, weight):
            partial = self.transport.run_round(job)
            share = self.how.staleness(version - old)
            self.order.look(partial)
            update = partial.take_mean()
            if self.how.mixing is None:
                share *= partial.weight / weight
            else:  # towards the client's model, wherever the global one is by now
                share *= self.how.mixing
                update += job.broadcast.double() - self.vector
            mean.add_(update, alpha=share)
            sums = {name: sums.get(name, 0.0) + value for name, value in partial.metrics.items()}
        return mean, sums
