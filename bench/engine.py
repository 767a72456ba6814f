"""Rounds a second of fedsim's trainers on two workloads, beside the naive loop and the practical limit, in one run.

`bench/workloads.py` states the workloads. Data, initial weights and cohorts are the same for all; each way runs in a
process of its own, one after another. `naive` is the loop most people write (`bench/peers/naive.py`), `limit` the
arithmetic alone (`bench/limit.py`). Times are medians over rounds without the first; memory is the largest resident
set minus that before the first round. `bench/peers/run.py` compares with other simulators.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from limit import limit
from peers.naive import naive
from report import PeakMemory, header, print_report, write_report
from torch import nn
from torch.utils.data import TensorDataset
from workloads import BATCH, WORKLOADS, initial_model, make

from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.robust import mean
from fedsim.simulation import Simulation
from fedsim.train.calibrate import Auto
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

WAYS = {
    "W1": ["naive", "limit", "serial", "vectorized-1", "vectorized-4", "vectorized-10", "auto"],
    "W2": ["naive", "limit", "serial", "vectorized-16", "vectorized-32", "vectorized-100", "auto"],
}
RUN = 100  # rounds that trainer=auto is told of
SEED = 0


def simulation(way: str, dataset: FederatedDataset, model: nn.Module, cohorts: np.ndarray, rate: float) -> Simulation:
    """A run of given cohorts by the trainer that `way` names: serial, auto or vectorized-K; with a sum in float32 where
    it ends in /float32."""
    trainer, _, dtype = way.partition("/")
    kind, _, slots = trainer.partition("-")
    trainers = {"serial": SerialTrainer, "auto": Auto(cache=False)}
    return Simulation(
        dataset,
        model,
        local=LocalConfig(learning_rate=rate, batch_size=BATCH),
        server=ServerConfig(num_rounds=RUN, clients_per_round=cohorts.shape[1]),
        sampler=lambda population, size: lambda seed, round: cohorts[round - 1],
        trainer=trainers.get(kind) or partial(VectorizedTrainer, num_slots=int(slots)),
        aggregator=mean(dtype=dtype or "float64"),
        seed=SEED,
        device="cpu",
    )


def _naive(dataset: FederatedDataset, model: nn.Module, cohorts: np.ndarray, rate: float) -> list[float]:
    x, y, offsets = dataset.train.inputs, dataset.train.targets, dataset.train.offsets.tolist()
    clients = [TensorDataset(x[a:b], y[a:b]) for a, b in pairwise(offsets)]
    marks = [time.perf_counter()]
    sizes, done = dataset.train.sizes, lambda: marks.append(time.perf_counter())
    naive(model, clients, sizes, cohorts, rate=rate, batch=BATCH, done=done)
    return np.diff(marks).tolist()


def measure(name: str, way: str, rounds: int, threads: int) -> dict[str, Any]:
    """One way on one workload, in this process."""
    torch.set_num_threads(threads)
    dataset, cohorts = make(name, rounds)
    model, rate = initial_model(name, dataset), WORKLOADS[name].rate
    run: Callable[[], list[float]]
    if way == "naive":
        run = partial(_naive, dataset, model, cohorts, rate)
    elif way == "limit":
        run = partial(limit, dataset.train, model, cohorts, rate)
    else:
        server = simulation(way, dataset, model, cohorts, rate).server
        run = lambda: [server.run_round()["seconds"] for _ in range(rounds)]  # noqa: E731
    with PeakMemory(torch.device("cpu")) as memory:
        seconds = run()
    samples = int(dataset.train.sizes[cohorts[1:]].sum())
    return {
        "workload": name,
        "way": way,
        "median_seconds": round(float(np.median(seconds[1:])), 4),
        "first_seconds": round(seconds[0], 2),
        "samples_per_second": round(samples / sum(seconds[1:])),
        "peak_mib": round((memory.peak - memory.start) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--ways", nargs="+", help="only these, beside naive and limit")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, the first of which is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/engine.json")
    options = parser.parse_args()
    rows = []
    for name in options.workloads:
        found = []
        for way in WAYS[name]:
            if options.ways and way not in ("naive", "limit", *options.ways):
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(measure, (name, way, options.rounds, options.threads)))
        for row in found:
            row["times_naive"] = round(found[0]["median_seconds"] / row["median_seconds"], 2)
            row["share_of_limit"] = round(row["samples_per_second"] / found[1]["samples_per_second"], 2)
        rows += found
    report = {**header("engine", options, torch.device("cpu")), "results": rows}
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
