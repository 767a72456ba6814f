"""Runs and groups of runs as tables for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from fedsim.report.page import written
from fedsim.report.runs import runs
from fedsim.report.tables import frame, settings
from fedsim.tracking.closing import Cell, table

_MOST_JOBS = 30
# Column of `frame` -> heading and kind, as in the page; a loss has three decimals, as in the lines of a run.
_OF_JOBS = {
    "best_accuracy": ("best", "share"), "final_accuracy": ("final", "share"), "train_loss": ("train loss", "loss"),
    "rounds": ("rounds", "count"), "seconds_a_round": ("a round", "seconds"),
}  # fmt: skip
_OF_GROUPS = {
    "best_accuracy": ("best accuracy", "share"), "final_accuracy": ("final accuracy", "share"),
    "round_to_target": ("rounds to target", "count"), "seconds_a_round": ("a round", "seconds"),
}  # fmt: skip


def jobs(directories: Sequence[Path], width: int) -> str:
    """A line a run: the settings in which they differ, and what came of them; of more than 30 runs the best.

    Args:
        directories: of the runs.
        width: of the terminal.
    """
    figures = frame(runs(directories))
    total, keys = len(figures), settings(figures)
    if total > _MOST_JOBS and "best_accuracy" in figures:
        figures = figures.sort_values("best_accuracy", ascending=False, kind="stable")
    figures = figures.head(_MOST_JOBS)
    shown = {name: about for name, about in _OF_JOBS.items() if name in figures}
    rows = [
        [
            str(run),
            *(_setting(row[key]) for key in keys),
            *(_figure(row[name], kind) for name, (_, kind) in shown.items()),
        ]
        for run, row in figures.iterrows()
    ]
    text = table(["job", *short(keys), *(head for head, _ in shown.values())], rows, width)
    return text if total == len(figures) else f"the best {len(figures)} of {total} runs\n{text}"


def grouped(groups: pd.DataFrame, by: Sequence[str], target: float | None, width: int) -> str:
    """What `fedsim.report.groups` gave, a line a group: mean and, of several runs, standard deviation.

    Args:
        groups: one row a group.
        by: the settings that make the groups.
        target: test accuracy whose cost is counted, for the heading.
        width: of the terminal.
    """
    shown = {name: about for name, about in _OF_GROUPS.items() if name in groups}
    heads = [*short(by), "runs", *(head for head, _ in shown.values())]
    if target is not None:
        heads = [f"rounds to {written(target, 'share')}" if head == "rounds to target" else head for head in heads]
    rows: list[list[Cell]] = []
    for name, row in groups.iterrows():
        values = list(name) if isinstance(name, tuple) else [name] if by else []
        figures = [_spread(row[(column, "mean")], row[(column, "std")], kind) for column, (_, kind) in shown.items()]
        rows.append([*map(_setting, values), cast(float, row[("runs", "count")]), *figures])
    return table(heads, rows, width)


def short(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys; whole keys where the last words are the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [key if last.count(end) > 1 else end for key, end in zip(keys, last, strict=True)]


def _number(value: object) -> float | None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None  # pyright: ignore[reportArgumentType]


def _setting(value: object) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if _number(value) is None else f"{_number(value):.6g}"


def _figure(value: object, kind: str) -> Cell:
    number = _number(value)
    if number is None or kind == "count":
        return number
    return f"{number:.3f}" if kind == "loss" else written(number, kind)


def _spread(mean: object, deviation: object, kind: str) -> Cell:
    number, around = _number(mean), _number(deviation)
    if number is None or around is None:
        return None if number is None else written(number, kind)
    return f"{written(number, kind)} \u00b1 {written(float(f'{around:.2g}'), kind)}"
