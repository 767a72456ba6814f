"""Rounds a second of fedsim's trainers on two workloads, beside the naive loop and the practical limit, in one run.

W1: FEMNIST's CNN (6.6M parameters), 10 of 350 clients of about 110 samples, batch 10, learning rate 0.01, one epoch.
W2: logistic regression 784-10, 100 of 1000 clients of about 60 samples, batch 10, learning rate 0.03, one epoch.

Data, initial weights and cohorts are the same for all; each way runs in a process of its own, one after another.
`naive` is the loop most people write (a deep copy and a DataLoader for each client, state dicts kept). `limit` trains
one model on as many samples as a round has in batches of 256, without any client: what the arithmetic alone takes.
Times are medians over rounds without the first; memory is the largest resident set minus that before the first round.
"""

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, write_report
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.models import leaf_cnn, logistic
from fedsim.simulation import Simulation
from fedsim.train.calibrate import Auto
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {"clients": 350, "mean": 114, "per_round": 10, "classes": 62, "rate": 0.01, "model": leaf_cnn, "noise": 1.0},
    "W2": {
        "clients": 1000,
        "mean": 60,
        "per_round": 100,
        "classes": 10,
        "rate": 0.03,
        "model": logistic,
        "noise": 10.0,
    },
}
WAYS = {
    "W1": ["naive", "limit", "serial", "vectorized-1", "vectorized-4", "vectorized-10", "auto"],
    "W2": ["naive", "limit", "serial", "vectorized-16", "vectorized-32", "vectorized-100", "auto"],
}
RUN = 100  # rounds that trainer=auto is told of


def make(name: str, rounds: int) -> tuple[FederatedDataset, np.ndarray]:
    """The clients (log-normal sizes, label skew) and the cohort of each round."""
    w, rng = WORKLOADS[name], np.random.default_rng(1)
    sizes = np.clip(np.round(rng.lognormal(np.log(w["mean"]) - 0.18, 0.6, w["clients"])), 10, 400).astype(np.int64)
    centres = rng.standard_normal((w["classes"], 28, 28))
    targets = np.concatenate([rng.choice(w["classes"], n, p=rng.dirichlet(np.ones(w["classes"]))) for n in sizes])
    inputs = np.empty((len(targets), 1, 28, 28), np.float32)
    for start in range(0, len(targets), 4096):
        part = targets[start : start + 4096]
        inputs[start : start + 4096, 0] = centres[part] + w["noise"] * rng.standard_normal((len(part), 28, 28))
    cohorts = np.stack([rng.choice(w["clients"], w["per_round"], replace=False) for _ in range(rounds)])
    split = Split(
        inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), offsets=np.append(0, np.cumsum(sizes))
    )
    ids = [str(i) for i in range(w["clients"])]
    return FederatedDataset(name=name, train=split, client_ids=ids, num_classes=w["classes"]), np.sort(cohorts)


def naive(dataset: FederatedDataset, model: nn.Module, cohorts: np.ndarray, rate: float) -> list[float]:
    clients = [
        TensorDataset(dataset.train.inputs[slice(*span)], dataset.train.targets[slice(*span)])
        for span in zip(dataset.train.offsets[:-1], dataset.train.offsets[1:], strict=True)
    ]
    seconds = []
    for cohort in cohorts:
        begin = time.perf_counter()
        states, weights = [], []
        for client in cohort:
            local = copy.deepcopy(model).train()
            optimizer = torch.optim.SGD(local.parameters(), lr=rate)
            for x, y in DataLoader(clients[client], batch_size=10, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(local(x), y).backward()
                optimizer.step()
            states.append(local.state_dict())
            weights.append(len(clients[client]))
        total = sum(weights)
        mean = {k: sum(s[k] * (n / total) for s, n in zip(states, weights, strict=True)) for k in states[0]}
        model.load_state_dict(mean)
        seconds.append(time.perf_counter() - begin)
    return seconds


def limit(dataset: FederatedDataset, model: nn.Module, cohorts: np.ndarray, rate: float) -> list[float]:
    optimizer, seconds = torch.optim.SGD(model.parameters(), lr=rate), []
    for cohort in cohorts:
        rows = torch.from_numpy(np.concatenate([dataset.train.rows(c) for c in cohort]))
        begin = time.perf_counter()
        for batch in rows.split(256):
            optimizer.zero_grad()
            outputs = model(dataset.train.inputs[batch])
            nn.functional.cross_entropy(outputs, dataset.train.targets[batch]).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure(name: str, way: str, rounds: int, threads: int) -> dict[str, Any]:
    """One way on one workload, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dataset, cohorts = make(name, rounds)
    w = WORKLOADS[name]
    model = w["model"](dataset.input_shape, dataset.num_classes)
    run: Callable[[], list[float]]
    if way in ("naive", "limit"):
        run = partial({"naive": naive, "limit": limit}[way], dataset, model, cohorts, w["rate"])
    else:
        kind, _, slots = way.partition("-")
        trainers = {"serial": SerialTrainer, "auto": Auto(cache=False)}
        simulation = Simulation(
            dataset,
            model,
            local=LocalConfig(learning_rate=w["rate"]),
            server=ServerConfig(num_rounds=RUN, clients_per_round=w["per_round"]),
            sampler=lambda population, size: lambda seed, round: cohorts[round - 1],
            trainer=trainers.get(kind) or partial(VectorizedTrainer, num_slots=int(slots)),
            device="cpu",
        )

        def run() -> list[float]:
            return [simulation.server.run_round()["seconds"] for _ in range(rounds)]

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
