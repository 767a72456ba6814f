"""A sweep whose figures are known: two algorithms, three seeds each, written as a run writes them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

# Test accuracy after rounds 2, 4 and 6 of each run; seeds 0, 1, 2.
ACCURACIES = {
    "fedavg": [(0.30, 0.50, 0.60), (0.20, 0.50, 0.40), (0.10, 0.20, 0.30)],
    "fedprox": [(0.50, 0.70, 0.80), (0.50, 0.60, 0.70), (0.20, 0.50, 0.90)],
}


def write_run(directory: Path, algorithm: str, seed: int, accuracies: tuple[float, ...], **more: Any) -> None:
    """Six rounds of 10 s each, which send 1000 bytes up and 500 down, on a clock that gains 7 s a round."""
    directory.mkdir(parents=True)
    config = {
        "name": "known", "seed": seed,
        "algorithm": {"_target_": f"fedsim.algorithms.{algorithm}"},
        "local": {"learning_rate": 0.1}, "checkpoint": {"resume": None if seed else "x"},
    }  # fmt: skip
    if algorithm == "fedprox":
        config["algorithm"]["proximal_weight"] = 0.01
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = []
    for round in range(1, 7):
        row = {"round": round, "train_loss": 3.0 / round, "seconds": 10.0, "peak_memory_bytes": 2**20 * round, **more}
        if more:
            row |= {"bytes_up": 1000, "bytes_down": 500, "virtual_seconds": 7.0 * round}
        if round % 2 == 0:
            row |= {"test_accuracy": accuracies[round // 2 - 1], "test_loss": 1.0}
        lines.append(json.dumps(row))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    clients = pd.DataFrame({"client": list("abcde"), "samples": 10, "accuracy": [0.1, 0.2, 0.3, 0.4, accuracies[-1]]})
    clients.to_csv(directory / "clients.csv", index=False)
    alone = {"clients": 3, "samples": 15, "sizes": [2] * 25 + [5] + [8] * 25, "held": [1, 2, 2], "a_column": 1}
    other = {"clients": 300, "samples": 1200, "sizes": [1] * 25 + [4] + [9] * 25}  # of targets that are no classes
    outline = other if seed == 1 else {**alone, "columns": [[2, 0], [1, 4], [4, 4]]}
    (directory / "partition.json").write_text(json.dumps(outline))
    summary = {"name": "known", "num_clients": 5, "notes": ["a stand-in </script><b>"], "data": "synthetic"}
    (directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    jobs = [(name, seed, seen) for name, runs in ACCURACIES.items() for seed, seen in enumerate(runs)]
    for number, (algorithm, seed, accuracies) in enumerate(jobs):
        write_run(tmp_path / "sweep" / str(number), algorithm, seed, accuracies, update_norm=0.5)
    return tmp_path / "sweep"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve runs, more than the page has colours: seed 0 ends at 10 %, 1 at 90 %, the others at 20 to 65 %."""
    for seed, accuracy in enumerate([0.1, 0.9, *(0.2 + 0.05 * i for i in range(10))]):
        write_run(tmp_path / "many" / str(seed), "fedavg", seed, (accuracy,) * 3)
    return tmp_path / "many"
