"""Memory and time as the number of clients grows: a round's cost is its cohort's, and memory is nobody's.

`registered`: 1,000 to 1,000,000 clients of two samples, 100 of them in a round. `cohort`: 10 to 10,000 clients a round
of as many registered ones, 60 samples each, for each number of slots that all these rounds fill. Logistic regression
784-10 on generated pixels, batches of 10, one epoch. Each row has a process of its own.

`beyond_data_mib` is the largest resident set of the process, libraries included, less what the samples, their owners
and the clients' names took: what may not grow. `of_first` is its ratio to the first row of the same kind and slots.
`start_mib` is the part taken by building the run, `round_mib` by rounds, `plan_mib` the arrays of planning one round at
their peak (of which the plan itself is a fraction), `plan_share` the share of planning in a round's seconds.

`time_of_first` is the ratio of seconds a client to those of the first row, which trains just before and just after,
each for at least --clients clients; the median of --turns such ratios, with the lowest and the highest. One row after
the other, on a machine whose speed changes by half within a minute, gave anything from 0.6 to 1.7.
"""

import argparse
import multiprocessing
import time
import timeit
import tracemalloc
from contextlib import ExitStack
from functools import partial
from multiprocessing.pool import Pool
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


class Row:
    """One setting, in a process of its own: built once, then trained for a while, again and again."""

    def __init__(self, kind: str, num_clients: int, num_slots: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.kind, self.num_clients, self.num_slots = kind, num_clients, num_slots
        self.cohort = min(num_clients, 100) if kind == "registered" else num_clients
        self.local = LocalConfig(learning_rate=0.03)
        before = _resident()
        self.dataset = make(np.full(num_clients, 2 if kind == "registered" else 60))
        release(torch.device("cpu"))
        self.data = _resident() - before
        begin = time.perf_counter()
        with PeakMemory(torch.device("cpu")) as self.building:
            self.simulation = Simulation(
                self.dataset,
                logistic,
                local=self.local,
                server=ServerConfig(num_rounds=1 << 30, clients_per_round=self.cohort),
                trainer=partial(VectorizedTrainer, num_slots=num_slots) if num_slots > 1 else SerialTrainer,
                device="cpu",
            )
        self.start_seconds = time.perf_counter() - begin
        with PeakMemory(torch.device("cpu")) as self.training:
            self.rounds(2)

    def rounds(self, number: int) -> list[float]:
        """Seconds of each of the next rounds."""
        return [self.simulation.server.run_round()["seconds"] for _ in range(number)]

    def visit(self, clients: int) -> float:
        """Seconds a client in the median round, of as many as train `clients` clients."""
        return float(np.median(self.rounds(-(-clients // self.cohort)))) / self.cohort

    def report(self, seconds: float) -> dict[str, Any]:
        """What does not change from turn to turn; a client takes `seconds`."""
        chosen = self.simulation.server.sampler(0, 1)
        plan = partial(make_plan, self.dataset.train, chosen, self.local, seed=0, round=1, num_slots=self.num_slots)
        plan_seconds = min(timeit.repeat(plan, number=1, repeat=5))
        tracemalloc.start()
        plan()
        plan_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {
            "kind": self.kind,
            "registered": self.num_clients,
            "cohort": self.cohort,
            "slots": self.num_slots,
            "data_mib": round(self.data / 2**20),
            "start_seconds": round(self.start_seconds, 3),
            "start_mib": round((self.building.peak - self.building.start) / 2**20, 1),
            "round_mib": round((self.training.peak - self.training.start) / 2**20, 1),
            "plan_mib": round(plan_bytes / 2**20, 1),
            "plan_share": round(plan_seconds / (seconds * self.cohort), 3),
            "beyond_data_mib": round((max(self.building.peak, self.training.peak) - self.data) / 2**20),
        }


_row: Row


def _build(*setting: Any) -> None:
    global _row
    _row = Row(*setting)


def _visit(clients: int) -> float:
    return _row.visit(clients)


def _report(seconds: float) -> dict[str, Any]:
    return _row.report(seconds)


def _resident() -> int:
    return psutil.Process().memory_info().rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--cohorts", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 10], help="1 is the serial trainer")
    parser.add_argument("--clients", type=int, default=500, help="to train at least, in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/scaling.json")
    options = parser.parse_args()
    groups = [[("registered", n, options.slots[0]) for n in options.registered]]
    groups += [[("cohort", n, slots) for n in options.cohorts if n >= slots] for slots in options.slots]
    rows = []
    for group in groups:
        with ExitStack() as stack:
            context = multiprocessing.get_context("spawn")
            pools = [stack.enter_context(context.Pool(1, _build, (*setting, options.threads))) for setting in group]
            rows += compare(pools, options.clients, options.turns)
    report = {**header("scaling", options, torch.device("cpu")), "results": rows}
    print_report(report, rows)
    write_report(report, options.out)


def compare(pools: list[Pool], clients: int, turns: int) -> list[dict[str, Any]]:
    """A table of rows, each in one of `pools`, all beside the first."""
    for pool in pools:
        pool.apply(int)  # nothing, when it has been built
    rows = []
    for pool in pools:
        seconds, ratios = [], []
        for _ in range(turns):
            before, own, after = (p.apply(_visit, (clients,)) for p in (pools[0], pool, pools[0]))
            seconds.append(own)
            ratios.append(2 * own / (before + after))
        row = pool.apply(_report, (float(np.median(seconds)),))
        first = rows[0] if rows else row
        rows.append(
            {
                **row,
                "of_first": round(row["beyond_data_mib"] / first["beyond_data_mib"], 3),
                "us_per_client": round(float(np.median(seconds)) * 1e6, 1),
                "time_of_first": round(float(np.median(ratios)), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
            }
        )
    return rows


if __name__ == "__main__":
    main()
