"""summary.json: the outcome of a run in one small file."""

import hashlib
import json
import platform
from typing import Any

import numpy as np
import torch


def config_hash(comparable: dict[str, Any]) -> str:
    """12 hexadecimal digits that two runs share exactly when their configuration means the same."""
    return hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest()[:12]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Final and best metrics, and time and memory, from the rows of metrics.jsonl."""
    evaluated = [row for row in rows if "test_accuracy" in row]
    seconds = [row["seconds"] for row in rows]
    summary: dict[str, Any] = {
        "rounds": rows[-1]["round"],
        "final": {k: rows[-1][k] for k in ("train_loss", "test_loss", "test_accuracy") if k in rows[-1]},
        "seconds_per_round_median": float(np.median(seconds)),
        "seconds_per_round_mean": float(np.mean(seconds)),
        "seconds_training": float(np.sum(seconds)),
        "seconds_evaluating": float(sum(row.get("evaluate_seconds", 0.0) for row in rows)),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
    }
    if evaluated:
        best = max(evaluated, key=lambda row: row["test_accuracy"])
        summary["best"] = {k: best[k] for k in ("round", "test_loss", "test_accuracy")}
    return summary


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
