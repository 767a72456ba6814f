"""The asynchronous server: it steps when enough updates have arrived, whatever models these started from."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import OrderWatch, weight_scale
from fedsim.algorithms.base import Algorithm, Round, Setup, step_server
from fedsim.arrivals.base import Arrivals, Buffer
from fedsim.client_state import ClientVectors
from fedsim.config import ScheduleConfig
from fedsim.denormals import flushed_denormals
from fedsim.memory import peak_memory_bytes
from fedsim.transport.base import Job, Transport


class AsyncServer:
    """Owns the global model and the older versions of it that clients are at work on.

    A round is a step of the server, and the version of a model the number of steps that made it. What a client learns
    is a function of (seed, version, client), and sums of updates from one version have no order; so a step follows
    from who has arrived before it, whoever trains them, and with how many slots.

    Attributes:
        arrived: rows for arrivals.csv of the updates of the last step.

    Args:
        vector: (P + Q,) initial global model; changed in place.
        num_parameters: P.
        sizes: (C,) training samples of each client.
        algorithm: with `asynchronous`.
        arrivals: who arrives when.
        transport: where clients train; for `Live` arrivals a `Dispatch`.
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
        arrivals: Arrivals,
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
        able = int((sizes > 0).sum())
        if self.how.buffer_size > able:
            raise ValueError(
                f"algorithm.buffer_size={self.how.buffer_size}, but {able} clients have training samples, and none "
                "trains twice from one version; take a smaller buffer"
            )
        self.vector, self.num_parameters, self.sizes = vector, num_parameters, sizes
        self.algorithm, self.clock, self.transport = algorithm, arrivals, transport
        self.versions = ClientVectors(len(vector), name="versions", dtype=vector.dtype, device=vector.device)
        self.state = algorithm.server_init(vector, Setup(num_parameters=num_parameters, sizes=sizes, draw=draw))
        self.round, self.moving = 0, False
        self.order = OrderWatch()
        self.arrived: list[dict[str, Any]] = []
        heaviest = np.argsort(self._weights(np.arange(len(sizes))))[-self.how.buffer_size :]
        self.heaviest = self._weight(heaviest)

    @flushed_denormals()
    def run_round(self) -> dict[str, float]:
        """Wait for a buffer of updates and step. After an error in training nothing has moved; see `Server.moving`."""
        begin = time.perf_counter()
        version = self.round
        buffer = self.clock.collect(self.how.buffer_size, version, self._job, self.transport)
        weight = self._weight(np.array([client for client, _ in buffer.arrived]))
        mean, sums = self._mean(buffer, version, weight)
        update_norm = torch.linalg.vector_norm(mean[: self.num_parameters]).item()
        if not math.isfinite(update_norm):
            raise ValueError(f"round {version + 1}: the mean update is not finite; lower local.learning_rate")
        stale = [version - started_from for _, started_from in buffer.arrived]
        self.moving = True
        self.versions.forget(np.setdiff1d(self.versions.written, list(buffer.needed)))
        if version in buffer.needed:
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
        self.state = step_server(self.algorithm, self.vector, mean, self.state, around)
        self.round, self.arrived = version + 1, buffer.rows
        self.clock.settle(self.round, self._job, self.transport)
        self.moving = False
        return {
            "round": self.round,
            "train_loss": sums["loss_sum"] / sums["samples"],
            "update_norm": update_norm,
            "clients": int(sums["clients"]),
            "samples": int(sums["samples"]),
            "staleness_mean": sum(stale) / len(stale),
            "staleness_max": max(stale),
            **buffer.metrics,
            "seconds": time.perf_counter() - begin,
            "peak_memory_bytes": peak_memory_bytes(self.vector.device),
        }

    def next_job(self) -> Job:
        """The largest job of the next round."""
        arrived = self.clock.first(self.how.buffer_size, self.round)
        together: dict[int, list[int]] = {}
        for client, version in arrived:
            together.setdefault(version, []).append(client)
        version, clients = max(sorted(together.items()), key=lambda item: len(item[1]))
        return self._job(np.sort(clients), version)

    def _job(self, clients: np.ndarray, version: int) -> Job:
        """Train these from a version of the model.

        Updates of one version are added up whenever they come, so that their grid must not depend on who else comes.
        """
        weight = self._weight(clients) if self.how.buffer_size == 1 else self.heaviest
        return Job(
            round=version + 1,
            cohort=clients,
            sizes=self.sizes[clients],
            broadcast=self._model(version),
            scale=weight_scale(weight),
        )

    def _model(self, version: int) -> Tensor:
        """(P + Q,): the global model as it was after `version` steps."""
        return self.vector if version == self.round else self.versions.read(np.array([version]))[0]

    def _weights(self, clients: np.ndarray) -> np.ndarray:
        """(m,) float64 of each; 0 without samples."""
        samples, weights = self.sizes[clients].astype(np.float64), self.algorithm.weights
        return samples if weights is None else np.where(samples > 0, weights(clients, samples, {}), 0.0)

    def _weight(self, clients: np.ndarray) -> float:
        return float(self._weights(clients).sum())

    def _mean(self, buffer: Buffer, version: int, weight: float) -> tuple[Tensor, dict[str, float]]:
        """The float64 (P + Q,) by which the model is to move, and sums of the clients' metrics."""
        mean = torch.zeros_like(self.vector, dtype=torch.float64)
        sums: dict[str, float] = {}
        for old, partial in buffer.partials:
            share = self.how.staleness(version - old)
            self.order.look(partial)
            update = partial.take_mean().to(mean.device)
            if self.how.mixing is None:
                share *= partial.weight / weight
            else:  # towards the client's model, wherever the global one is by now
                share *= self.how.mixing
                update += self._model(old).double() - self.vector
            mean.add_(update, alpha=share)
            sums = {name: sums.get(name, 0.0) + value for name, value in partial.metrics.items()}
        return mean, sums
