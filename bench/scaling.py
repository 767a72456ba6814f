"""Memory and time as the number of clients grows: a round's cost is its cohort's, and memory is nobody's.

`registered`: 1,000 to 1,000,000 clients with a few samples each, 100 of them in a round. `cohort`: 10 to 10,000
clients a round of as many registered ones. Logistic regression 784-10 on generated pixels, about 60 samples a client
in `cohort`, batches of 10, one epoch. Each row runs in a process of its own. `mib_beyond_data` is the largest resident
set minus that at the start of the first round, `start_mib` what building the run took besides the samples.
"""

import argparse
import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, write_report

from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.models import logistic
from fedsim.simulation import Simulation
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


def measure(kind: str, num_clients: int, num_slots: int, rounds: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    sizes = np.full(num_clients, 2) if kind == "registered" else rng.integers(40, 80, num_clients)
    dataset = make(sizes)
    cohort = min(num_clients, 100) if kind == "registered" else num_clients
    begin = time.perf_counter()
    with PeakMemory(torch.device("cpu")) as building:
        simulation = Simulation(
            dataset,
            logistic,
            local=LocalConfig(learning_rate=0.03),
            server=ServerConfig(num_rounds=rounds, clients_per_round=cohort),
            trainer=partial(VectorizedTrainer, num_slots=num_slots) if num_slots > 1 else SerialTrainer,
            device="cpu",
        )
    start = time.perf_counter() - begin
    with PeakMemory(torch.device("cpu")) as memory:
        seconds = [simulation.server.run_round()["seconds"] for _ in range(rounds)]
    typical = float(np.median(seconds[1:]))
    return {
        "kind": kind,
        "registered": num_clients,
        "cohort": cohort,
        "slots": num_slots,
        "start_seconds": round(start, 3),
        "round_seconds": round(typical, 4),
        "us_per_client": round(typical / cohort * 1e6, 1),
        "start_mib": round((building.peak - building.start) / 2**20, 1),
        "mib_beyond_data": round((memory.peak - memory.start) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--cohorts", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 100], help="1 is the serial trainer")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the first of which is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/scaling.json")
    options = parser.parse_args()
    settings = [("registered", n, options.slots[0]) for n in options.registered]
    settings += [("cohort", n, slots) for slots in options.slots for n in options.cohorts]
    rows = []
    for kind, n, slots in settings:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (kind, n, slots, options.rounds, options.threads)))
    report = {**header("scaling", options, torch.device("cpu")), "results": rows}
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
