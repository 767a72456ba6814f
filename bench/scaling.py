"""Memory and time as the number of clients grows: a round's cost is its cohort's, and memory is nobody's.

`registered`: 1,000 to 1,000,000 clients of two samples, 100 of them in a round. `cohort`: 10 to 10,000 clients a round
of as many registered ones, 60 samples each. Logistic regression 784-10 on generated pixels, batches of 10, one epoch.
Each row runs in a process of its own, for as many rounds as train at least --clients clients.

`beyond_data_mib` is the largest resident set of the process, libraries included, less what the samples, their owners
and the clients' names took: what may not grow. `of_first` is its ratio to the first row of the same kind and slots,
`time_of_first` that of the seconds a client. `start_mib` is the part taken by building the run, `round_mib` by rounds,
`plan_mib` the arrays of planning one round at their peak (of which the plan itself is a fraction), `plan_share` the
share of planning in a round's seconds.
"""

import argparse
import multiprocessing
import time
import timeit
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from report import PeakMemory, header, print_report, release, write_report

from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.models import logistic
from fedsim.simulation import Simulation
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer


def make(sizes: np.ndarray) -> FederatedDataset:
    total = int(sizes.sum())
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (total, 784), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 10, (total,), generator=generator)
    split = Split(inputs=inputs, targets=targets, offsets=np.append(0, np.cumsum(sizes)))
    ids = [str(i) for i in range(len(sizes))]
    return FederatedDataset(
        name="pixels", train=split, client_ids=ids, num_classes=10, preprocess=lambda x: x.float().div_(255.0)
    )


def measure(kind: str, num_clients: int, num_slots: int, clients: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    cohort = min(num_clients, 100) if kind == "registered" else num_clients
    rounds = 1 + max(3, -(-clients // cohort))
    local = LocalConfig(learning_rate=0.03)
    before = _resident()
    dataset = make(np.full(num_clients, 2 if kind == "registered" else 60))
    release(torch.device("cpu"))
    data = _resident() - before
    begin = time.perf_counter()
    with PeakMemory(torch.device("cpu")) as building:
        simulation = Simulation(
            dataset,
            logistic,
            local=local,
            server=ServerConfig(num_rounds=rounds, clients_per_round=cohort),
            trainer=partial(VectorizedTrainer, num_slots=num_slots) if num_slots > 1 else SerialTrainer,
            device="cpu",
        )
    start = time.perf_counter() - begin
    with PeakMemory(torch.device("cpu")) as memory:
        seconds = [simulation.server.run_round()["seconds"] for _ in range(rounds)]
    chosen = simulation.server.sampler(0, 1)
    plan = partial(make_plan, dataset.train, chosen, local, seed=0, round=1, num_slots=num_slots)
    plan_seconds = min(timeit.repeat(plan, number=1, repeat=5))
    tracemalloc.start()
    plan()
    plan_bytes = tracemalloc.get_traced_memory()[1]
    typical = float(np.median(seconds[1:]))
    return {
        "kind": kind,
        "registered": num_clients,
        "cohort": cohort,
        "slots": num_slots,
        "rounds": rounds,
        "data_mib": round(data / 2**20),
        "start_seconds": round(start, 3),
        "start_mib": round((building.peak - building.start) / 2**20, 1),
        "round_mib": round((memory.peak - memory.start) / 2**20, 1),
        "plan_mib": round(plan_bytes / 2**20, 1),
        "beyond_data_mib": round((max(building.peak, memory.peak) - data) / 2**20),
        "round_seconds": round(typical, 4),
        "plan_share": round(plan_seconds / typical, 3),
        "us_per_client": round(typical / cohort * 1e6, 1),
    }


def _resident() -> int:
    return psutil.Process().memory_info().rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--cohorts", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 100], help="1 is the serial trainer")
    parser.add_argument("--clients", type=int, default=2000, help="to train at least, in rounds after the first")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/scaling.json")
    options = parser.parse_args()
    settings = [("registered", n, options.slots[0]) for n in options.registered]
    settings += [("cohort", n, slots) for slots in options.slots for n in options.cohorts]
    rows = []
    for kind, n, slots in settings:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (kind, n, slots, options.clients, options.threads))
        first = next((r for r in rows if (r["kind"], r["slots"]) == (kind, slots)), row)
        row["of_first"] = round(row["beyond_data_mib"] / first["beyond_data_mib"], 3)
        row["time_of_first"] = round(row["us_per_client"] / first["us_per_client"], 2)
        rows.append(row)
    report = {**header("scaling", options, torch.device("cpu")), "results": rows}
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
