"""What is no training: how soon the command line answers, how soon a run trains, what a round and evaluation cost.

help        `python -m fedsim --help`, the whole process.
debug       `+experiment=debug` in a process that has imported what a run imports: seconds until round 1 is trained.
            cold: with an empty cache, so that the samples are drawn; warm: with the samples there.
overhead    a recorded run with a trainer that does nothing: seconds between two calls of the trainer, which holds
            drawing the cohort, the plan, averaging, the server's step, metrics and their files. 60 samples a client on
            average, batches of 10, logistic regression. `cohort_ms` and `plan_ms` are parts, timed by themselves.
evaluation  `+experiment=femnist_fedavg`, as it comes: the share of evaluation in the time of all rounds.

Each row runs in a process of its own. Targets: help 1 s, debug 2 s, overhead 2 ms with 100 clients a round and 20 ms
with 10,000, evaluation 10%.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import header, print_report, write_report

_RUN = ("fedsim.cli", "fedsim.checkpoint", "fedsim.assemble", "fedsim.recording", "fedsim.transport.place")


def timed(call: Callable[[], object], repeats: int = 9) -> float:
    """Median seconds of a call, the first one left out."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


def command(*arguments: str, folder: str) -> None:
    """`python -m fedsim` to its end."""
    subprocess.run([sys.executable, "-m", "fedsim", *arguments], cwd=folder, capture_output=True, check=True)


def measure_help() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(lambda: command("--help", folder=folder), 5)
    return [{"part": "help", "seconds": round(seconds, 3), "target": 1.0}]


def first_round(folder: str, experiment: str) -> tuple[float, float]:
    """Seconds of the imports, and from there until round 1 is trained."""
    begin = time.perf_counter()
    cli, *_ = (importlib.import_module(name) for name in _RUN)
    for group in ("data.femnist", "data.partition", "models", "algorithms", "train.calibrate"):
        importlib.import_module(f"fedsim.{group}")
    from fedsim.server import Server

    imported = time.perf_counter()
    ends, original = [], Server.run_round

    def watched(server: Server) -> Any:
        metrics = original(server)
        ends.append(time.perf_counter())
        return metrics

    Server.run_round = watched
    os.environ["FEDSIM_CACHE"] = str(Path(folder) / "cache")
    sys.argv = [
        "fedsim",
        f"+experiment={experiment}",
        f"hydra.run.dir={folder}/{time.time_ns()}",
        "tracking.quiet=true",
    ]
    cli.main()
    return imported - begin, ends[0] - imported


def measure_debug() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "warm"):
            imports, seconds = alone(partial(first_round, folder, "debug"))
            row = {"part": "debug", "what": state, "seconds": round(seconds, 3), "target": 2.0}
            rows.append(row | {"imports_seconds": round(imports, 2)})
    return rows


class Idle:
    """A trainer that returns nothing for its clients at once, and remembers when."""

    expected_history = 0

    def __init__(self, dataset, model, algorithm, local, *, num_slots, seed=0) -> None:
        from fedsim.train.hooked import ClientMemory

        self.size, self.num_slots = model.layout.size, num_slots
        self.memory, self.clients = ClientMemory(algorithm, model), None
        self.calls: list[tuple[int, float, float]] = []  # round, and when it came and left

    def history_bytes(self, steps: int, batch: int) -> int:
        return 0

    def train(self, plan, broadcast, scale):
        from fedsim.aggregate import PartialAverage

        begin = time.perf_counter()
        metrics = {"loss_sum": 0.0, "samples": float(plan.counts.sum()), "clients": float(len(plan.clients))}
        total = torch.zeros(self.size, dtype=torch.float64)
        partial_average = PartialAverage(total=total, weight=float(plan.weights.sum()), scale=scale, metrics=metrics)
        self.calls.append((plan.round, begin, time.perf_counter()))
        return partial_average


def overhead(registered: int, cohort: int, num_slots: int, rounds: int) -> dict[str, Any]:
    from fedsim.config import CheckpointConfig, EvaluateConfig, LocalConfig, ServerConfig, TrackingConfig
    from fedsim.data.federated import FederatedDataset, Split
    from fedsim.models import logistic
    from fedsim.recording import record
    from fedsim.simulation import Simulation
    from fedsim.train.plan import make_plan

    sizes = np.random.default_rng(0).integers(40, 80, registered)
    total = int(sizes.sum())
    split = Split(
        inputs=torch.zeros((1, 784), dtype=torch.uint8).expand(total, 784),  # nobody reads them
        targets=torch.zeros(1, dtype=torch.int64).expand(total),
        offsets=np.append(0, np.cumsum(sizes)),
    )
    ids = [str(i) for i in range(registered)]
    simulation = Simulation(
        FederatedDataset(name="idle", train=split, client_ids=ids, num_classes=10, preprocess=torch.Tensor.float),
        logistic,
        local=LocalConfig(),
        server=ServerConfig(num_rounds=rounds, clients_per_round=cohort, evaluate_every=0),
        trainer=partial(Idle, num_slots=num_slots),
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        record(
            simulation,
            Path(folder) / "run",
            evaluate=EvaluateConfig(clients=False),
            tracking=TrackingConfig(quiet=True),
            checkpoint=CheckpointConfig(every=0),
        )
    calls = simulation.trainer.calls[-rounds:]  # before them, trials for the memory planner
    between = [after[1] - before[2] for before, after in pairwise(calls)]
    draw = simulation.server.sampler
    chosen = draw(0, 1)
    plan = partial(make_plan, split, chosen, LocalConfig(), seed=0, round=1, num_slots=num_slots)
    milliseconds = float(np.median(between[1:])) * 1e3
    return {
        "part": "overhead",
        "what": f"{cohort:,} of {registered:,} clients, {num_slots} slots",
        "ms": round(milliseconds, 2),
        "target": 2.0 if cohort <= 100 else 20.0,
        "us_per_client": round(milliseconds / cohort * 1e3, 2),
        "cohort_ms": round(timed(lambda: draw(0, 1)) * 1e3, 2),
        "plan_ms": round(timed(plan) * 1e3, 2),
    }


def measure_evaluation(rounds: int | None, options: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        given = [] if rounds is None else [f"server.num_rounds={rounds}"]
        command("+experiment=femnist_fedavg", *given, *options, "hydra.run.dir=run", folder=folder)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    training = sum(row["seconds"] for row in rows)
    evaluations = [row["evaluate_seconds"] for row in rows if "evaluate_seconds" in row]
    return [
        {
            "part": "evaluation",
            "what": f"{len(rows)} rounds, {len(evaluations)} evaluations, the last {evaluations[-1]:.2f} s",
            "seconds": round(sum(evaluations), 2),
            "share": round(sum(evaluations) / (training + sum(evaluations)), 3),
            "target": 0.1,
        }
    ]


def alone(call: Callable[[], Any]) -> Any:
    """The result of a call in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(call)
        pool.close()  # it ends by itself, and takes what it has opened along
        pool.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("help", "debug", "overhead", "evaluation")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=60, help="of a run without training")
    parser.add_argument("--evaluation-rounds", type=int, help="default: those of the experiment")
    parser.add_argument(
        "--options", nargs="*", default=[], help="of the run for evaluation, for example trainer=serial"
    )
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/startup.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if "help" in options.parts:
        rows += measure_help()
    if "debug" in options.parts:
        rows += measure_debug()
    if "overhead" in options.parts:
        settings = [(1000, 100, 1), (1000, 100, 100), (1_000_000, 100, 100)]
        settings += [(10_000, 10_000, 1), (10_000, 10_000, 100), (100_000, 10_000, 100)]
        rows += [alone(partial(overhead, *setting, options.rounds)) for setting in settings]
    if "evaluation" in options.parts:
        rows += measure_evaluation(options.evaluation_rounds, options.options)
    report = {**header("startup", options, torch.device("cpu")), "results": rows}
    columns = dict.fromkeys(key for row in rows for key in row)
    print_report(report, [{key: row.get(key) for key in columns} for row in rows])
    write_report(report, options.out)


if __name__ == "__main__":
    main()
