"""summary.json: the outcome of a run in one small file."""

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedsim.score import score, scores


def config_hash(comparable: dict[str, Any]) -> str:
    """12 hexadecimal digits that two runs share exactly when their configuration means the same."""
    return hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest()[:12]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Final and best metrics, and time and memory, from the rows of metrics.jsonl."""
    evaluated = [row for row in rows if score(row) is not None]
    seconds = [row["seconds"] for row in rows]
    summary: dict[str, Any] = {
        "rounds": rows[-1]["round"],
        "final": {"train_loss": rows[-1]["train_loss"], **tested(rows[-1])},
        "seconds_per_round_median": float(np.median(seconds)),
        "seconds_per_round_mean": float(np.mean(seconds)),
        "seconds_training": float(np.sum(seconds)),
        "seconds_evaluating": float(sum(row.get("evaluate_seconds", 0.0) for row in rows)),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
    }
    for name in ("bytes_up", "bytes_down"):
        if any(name in row for row in rows):
            summary[name] = sum(row.get(name, 0) for row in rows)
    summary |= {name: rows[-1][name] for name in ("virtual_seconds", "wall_seconds") if name in rows[-1]}
    if evaluated and (reached := to_accuracy(rows)):
        summary["to_accuracy"] = reached
    if evaluated:
        best = evaluated[int(np.argmax(scores(evaluated)))]
        summary["best"] = {"round": best["round"], **tested(best)}
    return summary


def tested(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row, or a part of a summary, tells of a test: test_loss, test_accuracy, and what else was measured."""
    return {name: value for name, value in row.items() if name.startswith("test_")}


def to_accuracy(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What it took to reach a test accuracy first: by "0.1", "0.2" ... "0.9", "0.95" and "0.99", as far as reached.

    Each has the round, and where the rows have them virtual_seconds or wall_seconds, and the sums of bytes_down and
    bytes_up so far.
    """
    reached: dict[str, dict[str, float]] = {}
    goals = [*(i / 10 for i in range(1, 10)), 0.95, 0.99]
    sent: dict[str, float] = {}
    for row in rows:
        for name in ("bytes_down", "bytes_up"):
            if name in row:
                sent[name] = sent.get(name, 0) + row[name]
        while goals and row.get("test_accuracy", -1.0) >= goals[0]:
            time = {name: row[name] for name in ("round", "virtual_seconds", "wall_seconds") if name in row}
            reached[str(goals.pop(0))] = time | sent
    return reached


def versions(device: torch.device) -> dict[str, str]:
    """What the figures were made with."""
    from fedsim import __version__

    found = {
        "fedsim": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
