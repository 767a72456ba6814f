"""Run directories as read back from the disk: finished ones, interrupted ones, and whole sweeps of them."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fedsim.tracking.readback import flat, read_metrics

# Where a run writes and how it reports: no difference between two experiments.
_ASIDE = ("tracking.", "checkpoint.", "data.root", "data.cache_dir", "data.download", "name")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it

Setting = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedRun:
    """One run directory.

    Attributes:
        path: the directory.
        name: short and unique among the runs that were read together.
        config: dotted keys; the factory of a group stands under the group's name (`algorithm` = "fedprox").
        metrics: one row a round, as in metrics.jsonl.
        clients: clients.csv; None where it was not written.
        partition: partition.json (`fedsim.data.outline`); None where it was not written.
        summary: summary.json; empty while the run is unfinished.
    """

    path: Path
    name: str
    config: dict[str, Setting]
    metrics: pd.DataFrame
    clients: pd.DataFrame | None
    partition: dict[str, Any] | None
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        return bool(self.summary)


def runs(paths: Iterable[str | Path]) -> list[RecordedRun]:
    """All runs in or below `paths`, in the order of their names. A run without a finished round is left out.

    Raises:
        ValueError: a path does not exist, or holds no run; a file is damaged.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; give run directories, or folders that hold some")
        inside = [file.parent for file in path.rglob("metrics.jsonl") if file.stat().st_size]
        if not inside:
            raise ValueError(f"no run with a finished round in {path} (there is no metrics.jsonl with rows)")
        found |= {directory.resolve(): None for directory in inside}
    directories = sorted(found, key=lambda directory: [_natural(part) for part in directory.parts])
    return [_read(d, name) for d, name in zip(directories, _names(directories), strict=True)]


def _natural(part: str) -> tuple[int, int, str]:
    """Jobs of a sweep in the order of their numbers: 2 before 10."""
    return (0, int(part), "") if part.isdigit() else (1, 0, part)


def _names(directories: Sequence[Path]) -> list[str]:
    """The paths without what all share."""
    if len(directories) == 1:
        return ["/".join(directories[0].parts[-2:])]
    shared = Path(os.path.commonpath(directories))
    return [directory.relative_to(shared).as_posix() for directory in directories]


def _read(directory: Path, name: str) -> RecordedRun:
    clients, partition, summary = (directory / name for name in ("clients.csv", "partition.json", "summary.json"))
    try:
        return RecordedRun(
            path=directory,
            name=name,
            config=_config(directory / "config.yaml"),
            metrics=pd.DataFrame(read_metrics(directory)),
            clients=pd.read_csv(clients) if clients.exists() else None,
            partition=json.loads(partition.read_text(encoding="utf-8")) if partition.exists() else None,
            summary=json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {},
        )
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the run {directory}: {' '.join(str(error).split())}") from error


def _config(file: Path) -> dict[str, Setting]:
    loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER) if file.exists() else None
    config: dict[str, Setting] = {}
    for key, value in flat(loaded or {}).items():
        group, _, last = key.rpartition(".")
        if last == "_target_":
            config[group] = str(value).rpartition(".")[2]
        elif last != "_partial_" and value != {}:  # a part that is left out
            config[key] = value if isinstance(value, str | int | float | bool | None) else json.dumps(value)
    return config


def grouping(recorded: Sequence[RecordedRun]) -> list[str]:
    """The differences that make groups: not the seed, nor what only comes with another choice.

    Such as `algorithm.proximal_weight`, where it is the same in all runs that have it: `algorithm` says as much.
    """

    def chosen(key: str) -> bool:
        return len({repr(run.config[key]) for run in recorded if key in run.config}) > 1

    return [key for key in differences(recorded) if key != "seed" and chosen(key)]


def differences(recorded: Sequence[RecordedRun]) -> list[str]:
    """The configuration's keys in which the runs differ, in the order of the configuration; the seed comes last."""
    keys = dict.fromkeys(key for run in recorded for key in run.config)
    found = [
        key for key in keys if not key.startswith(_ASIDE) and len({repr(run.config.get(key)) for run in recorded}) > 1
    ]
    return sorted(found, key=lambda key: key == "seed")
