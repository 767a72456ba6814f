"""A run directory read back. Nothing here needs PyTorch, so that a report is there at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run directory's metrics.jsonl; a last line cut short by a crash is left out."""
    file = path / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # whatever follows the last newline is not a whole row


def read_trainer(path: Path) -> dict[str, Any] | None:
    """What `RunDirectory.write_trainer` wrote; None if nothing."""
    file = path / "trainer.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
