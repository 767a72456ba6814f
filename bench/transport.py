"""What it costs to run a round in other processes, and what it brings.

`overhead`: rounds of a star whose workers train nothing (one client, a zero update of P elements), so that only
messages, threads and the merging are left; milliseconds a round, and a worker; the bytes into the server in a round of
one client a worker, and of 16. `speed-up`: FEMNIST's CNN (6.6M parameters, 12 clients a round, trainer=serial) in one
process and in N workers, each with one thread, by the command line; seconds a round, median without the first.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import header, print_report, write_report

from fedsim import __version__
from fedsim.aggregate import PartialAverage
from fedsim.transport.base import Job
from fedsim.transport.identity import Identity
from fedsim.transport.join import listen
from fedsim.transport.star import Star
from fedsim.transport.worker import Built, Worker

SECRET = b"0123456789abcdef"
COLUMNS = ("what", "workers", "ms_a_round", "ms_a_worker", "bytes_up", "bytes_up_16", "s_a_round", "speed_up")


class Idle:
    """A worker's transport that trains nothing."""

    def run_round(self, job: Job) -> PartialAverage:
        weight = float(job.sizes.sum())
        return PartialAverage(
            total=torch.zeros(len(job.broadcast), dtype=torch.float64), weight=weight, scale=job.scale
        )

    def close(self) -> None:
        """Nothing was started."""


def serve(address: str, i: int) -> None:
    """One worker, in a process of its own."""
    torch.set_num_threads(1)
    ready = {"config_hash": "", "dataset": "", "layout": ""}
    built = Built(transport=Idle(), device=torch.device("cpu"), ready=lambda: ready)
    Worker(
        [address],
        secret=SECRET,
        name=f"worker_{i}",
        version=__version__,
        claims=None,
        build=lambda identity, upstream: built,
    ).run()


def overhead(num_workers: int, size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a round of `num_workers` workers with nothing to do."""
    identity = Identity(
        config={}, comparable={}, config_hash="", version=__version__, dataset="", layout="", size=size, num_clients=64
    )
    star = Star(listen("127.0.0.1:0"), secret=SECRET, identity=identity, own=None, expected=lambda: num_workers)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=serve, args=(star.address, i)) for i in range(num_workers)]
    try:
        for worker in workers:
            worker.start()
        star.gather()
        vector, seconds = torch.zeros(size), []

        def train(number: int, clients: int) -> float:
            """One round; returns the bytes that came up."""
            cohort, sizes = np.arange(clients), np.ones(clients, np.int64)
            done = star.run_round(Job(round=number, cohort=cohort, sizes=sizes, broadcast=vector, scale=64.0))
            return sum(value for name, value in done.metrics.items() if name.startswith("bytes_up/"))

        for number in range(1, rounds + 1):
            begin = time.perf_counter()
            train(number, num_workers)
            seconds.append(time.perf_counter() - begin)
        up, up_16 = train(rounds + 1, num_workers), train(rounds + 2, 16 * num_workers)
    finally:
        star.close()
        for worker in workers:
            worker.join()
    milliseconds = 1000 * float(np.median(seconds[2:]))
    return {
        "what": f"overhead, P = {size:,}",
        "workers": num_workers,
        "ms_a_round": round(milliseconds, 3),
        "ms_a_worker": round(milliseconds / num_workers, 3),
        "bytes_up": int(up),
        "bytes_up_16": int(up_16),
    }


def training(num_workers: int, rounds: int) -> dict[str, Any]:
    """Seconds of a round of FEMNIST's CNN; 0 workers: in one process."""
    distributed = ["transport=torch_distributed", f"transport.num_workers={num_workers}"] if num_workers else []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "fedsim", "+experiment=femnist_fedavg", "data.num_clients=300", "trainer=serial",
            f"hydra.run.dir={folder}",
            f"server.num_rounds={rounds}", "server.clients_per_round=12", "server.evaluate_every=0", "device=cpu",
            "evaluate.clients=false", "checkpoint.every=0", *distributed,
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return {"what": "FEMNIST's CNN", "workers": num_workers, "s_a_round": round(float(np.median(seconds[1:])), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--training", nargs="*", type=int, default=[2], help="numbers of workers that train")
    parser.add_argument("--rounds", type=int, default=3, help="of training, the first of which is not counted")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/transport.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [overhead(n, size, 60 if size < 1e6 else 12) for size in (1_000, 6_603_710) for n in options.workers]
    if options.training:
        times = [training(n, options.rounds) for n in (0, *options.training)]
        for row in times:
            row["speed_up"] = round(times[0]["s_a_round"] / row["s_a_round"], 2)
        rows += times
    report = {**header("transport", options, torch.device("cpu")), "results": rows}
    print_report(report, [{key: row.get(key) for key in COLUMNS} for row in rows])
    write_report(report, options.out)


if __name__ == "__main__":
    main()
