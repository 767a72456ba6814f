"""The practical limit of a round: its samples through plain centralised training of one model in batches of 256.

No client, no copy of a model, no average: what the arithmetic alone takes, at a batch that fills the processor.
`bench/workloads.py` states the workloads. Times are medians over the rounds without the first; each batch size runs in
a process of its own.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, write_report
from torch import nn
from workloads import WORKLOADS, initial_model, make

from fedsim.data.federated import Split

BATCH_SIZE = 256


def limit(split: Split, model: nn.Module, cohorts: np.ndarray, rate: float, batch: int = BATCH_SIZE) -> list[float]:
    """Seconds of each round: all samples of its cohort, client after client, by torch.optim.SGD."""
    optimizer, seconds = torch.optim.SGD(model.parameters(), lr=rate), []
    for cohort in cohorts:
        rows = torch.from_numpy(np.concatenate([split.rows(c) for c in cohort]))
        begin = time.perf_counter()
        for part in rows.split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(split.inputs[part]), split.targets[part]).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure(name: str, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    dataset, cohorts = make(name, rounds)
    model = initial_model(name, dataset)
    with PeakMemory(torch.device("cpu")) as memory:
        seconds = limit(dataset.train, model, cohorts, WORKLOADS[name].rate, batch)
    return {
        "workload": name,
        "batch": batch,
        "median_seconds": round(float(np.median(seconds[1:])), 4),
        "samples_per_second": round(int(dataset.train.sizes[cohorts[1:]].sum()) / sum(seconds[1:])),
        "peak_mib": round((memory.peak - memory.start) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--batches", nargs="+", type=int, default=[10, 64, BATCH_SIZE, 1024])
    parser.add_argument("--rounds", type=int, default=6, help="rounds, the first of which is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/limit.json")
    options = parser.parse_args()
    rows = []
    for name in options.workloads:
        for batch in options.batches:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (name, batch, options.rounds, options.threads)))
    report = {**header("limit", options, torch.device("cpu")), "results": rows}
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
