"""The server: the global model and the whole round loop."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import weight_scale
from fedsim.algorithms.base import Algorithm
from fedsim.config import ServerConfig
from fedsim.memory import peak_memory_bytes
from fedsim.sampling import Sampler
from fedsim.transport.base import Job, Transport

Metrics = dict[str, float]


class Server:
    """Owns what lasts from round to round: the global vector, the algorithm's vectors and the round's number.

    Args:
        vector: (P + Q,) initial global model; changed in place.
        num_parameters: P.
        sizes: (C,) training samples of each client.
        algorithm, sampler, transport: what to do, with whom, and where.
        seed: of the run.
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
        seed: int,
    ) -> None:
        self.vector, self.num_parameters, self.sizes, self.seed = vector, num_parameters, sizes, seed
        self.algorithm, self.sampler, self.transport = algorithm, sampler, transport
        self.state = algorithm.server_init(vector)
        self.round = 0

    def run_round(self) -> Metrics:
        """One round: draw the cohort, train it, move the global model. After an error nothing has moved."""
        begin = time.perf_counter()
        round = self.round + 1
        cohort = self.sampler(self.seed, round)
        weight = float(self.sizes[cohort].sum())
        if weight == 0:
            raise ValueError(f"round {round}: no client of the cohort has a training sample; sample more clients")
        job = Job(round=round, cohort=cohort, broadcast=self.vector, scale=weight_scale(weight))
        partial = self.transport.run_round(job)
        mean = partial.mean
        update_norm = torch.linalg.vector_norm(mean[: self.num_parameters]).item()
        if not math.isfinite(update_norm):
            raise ValueError(f"round {round}: the mean update is not finite; lower local.learning_rate")
        self.state = self.algorithm.server_step(self.vector, mean, self.state)
        self.round = round
        sums = partial.metrics
        return {
            "round": round,
            "train_loss": sums["loss_sum"] / sums["samples"],
            "update_norm": update_norm,
            "clients": int(sums["clients"]),
            "samples": int(sums["samples"]),
            "seconds": time.perf_counter() - begin,
            "peak_memory_bytes": peak_memory_bytes(self.vector.device),
        }

    def rounds(self, config: ServerConfig, evaluate: Callable[[bool], Metrics]) -> Iterator[Metrics]:
        """Run to the last round; yields each round's metrics, with `evaluate(last)` in the rounds that are due."""
        while self.round < config.num_rounds:
            metrics = self.run_round()
            last = self.round == config.num_rounds
            if last or (config.evaluate_every and self.round % config.evaluate_every == 0):
                begin = time.perf_counter()
                metrics |= evaluate(last)
                metrics["evaluate_seconds"] = time.perf_counter() - begin
            yield metrics
