"""Virtual time and bytes to an accuracy: rounds, rounds that end early or send less, and asynchronous servers, on the
same devices.

MNIST's digits (or, without --root, FEMNIST's generated stand-in) on a two-layer network; phones of conf/devices: speeds
and bandwidths are log-normal, a fifth is not there when asked and one in twenty never reports. Every way asks or keeps
at work the same number of clients; the limit is on client updates, so that all train about as much. Times are virtual
and do not depend on this machine.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import header, print_report, write_report

from fedsim.cli import main as fedsim

WAYS: dict[str, list[str]] = {
    "fedavg": [],
    "fedavg, 1.3 times asked": ["server.over_selection=1.3"],
    "fedavg, deadline 5 s": ["server.deadline=5"],
    "fedavg, deadline 5 s, partial work": ["server.deadline=5", "server.partial_work=true"],
    "fedavg, a tenth of the elements": ["transforms=[top_k]", "transforms.top_k.fraction=0.1"],
    "fedbuff, buffer 10": ["algorithm=fedbuff", "algorithm.buffer_size=10"],
    "fedasync": ["algorithm=fedasync", "algorithm.mixing=0.3"],
}


def measure(way: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    asked = options.clients_at_work
    a_round = {"fedasync": 1, "fedbuff, buffer 10": 10}.get(way, asked)
    experiment = "mnist_dirichlet" if options.root else "debug"
    arguments = [
        f"+experiment={experiment}",
        "devices=phones",
        f"seed={seed}",
        f"server.clients_per_round={asked}",
        f"server.num_rounds={options.updates // a_round}",
        f"server.evaluate_every={max(1, 50 // a_round)}",
        "trainer=vectorized",
        f"trainer.num_slots={asked}",
        "checkpoint.every=0",
        "evaluate.clients=false",
        "tracking.progress=false",
        f"hydra.run.dir={folder}",
        *([f"data.root={options.root}"] if options.root else ["data.num_clients=100"]),
        *WAYS[way],
    ]
    sys.argv = ["fedsim", *arguments]
    fedsim()
    return json.loads((folder / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with MNIST/raw; without it the stand-in of FEMNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clients-at-work", type=int, default=20)
    parser.add_argument("--updates", type=int, default=400, help="client updates of a run")
    parser.add_argument("--goals", nargs="+", default=["0.5", "0.7"], help="accuracies, as summary.json names them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/virtual_time.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root, options.root = options.root, None if options.root is None else "FOLDER"  # a path of this machine
    report = header("virtual_time", options, torch.device("cpu"))
    options.root = root
    rows = []
    for way in options.ways:
        found = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(way, seed, options, Path(folder) / "run"))
        row: dict[str, Any] = {"way": way, "best_accuracy": spread([f["best"]["test_accuracy"] for f in found], 3)}
        for goal in options.goals:
            reached = [f.get("to_accuracy", {}).get(goal) for f in found]
            all_did = all(r is not None for r in reached)
            row[f"seconds_to_{goal}"] = spread([r["virtual_seconds"] for r in reached], 0) if all_did else None
            sent = [(r["bytes_down"] + r["bytes_up"]) / 1e6 for r in reached] if all_did else None
            row[f"MB_to_{goal}"] = spread(sent, 0) if sent else None
        rows.append(row)
        print(row, flush=True)
    report["results"] = rows
    print_report(report, rows)
    write_report(report, options.out)


def spread(values: list[float], digits: int) -> str:
    """Mean (lowest-highest)."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
