"""Runs and groups of runs as tables for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.report.page import written
from fedsim.report.runs import runs
from fedsim.report.tables import column, frame, settings
from fedsim.tracking.terminal import Column, Table

_MOST_ROWS = 30
_STAY = ("best_accuracy", "best_test_loss")  # however narrow the terminal is
_DASH = "-"
# Column of `frame` -> heading and kind, as in the page; a loss has three decimals, as in the lines of a run.
_OF_JOBS = {
    "best_accuracy": ("best", "share"), "final_accuracy": ("final", "share"),
    "best_test_loss": ("best test loss", "loss"), "final_test_loss": ("final", "loss"),
    "train_loss": ("train loss", "loss"), "rounds": ("rounds", "count"), "seconds_a_round": ("a round", "seconds"),
}  # fmt: skip
_OF_GROUPS = {
    "best_accuracy": ("best accuracy", "share"), "final_accuracy": ("final accuracy", "share"),
    "best_test_loss": ("best test loss", "loss"), "final_test_loss": ("final test loss", "loss"),
    "round_to_target": ("rounds to target", "count"), "seconds_a_round": ("a round", "seconds"),
}  # fmt: skip


def jobs(directories: Sequence[Path]) -> Table:
    """A line a run: the settings in which they differ, and what came of them; of more than 30 runs the best."""
    figures = frame(runs(directories))
    keys = settings(figures)
    shown, best = _ranked(figures)
    columns = [Column("job", [str(figures.index[row]) for row in shown])]
    columns += [_settings(head, figures[key].iloc[shown]) for head, key in zip(short(keys), keys, strict=True)]
    for name, (head, kind) in _OF_JOBS.items():
        if name in figures:
            cells = [_figure(value, kind) for value in figures[name].iloc[shown]]
            columns.append(Column(head, cells, right=True, stays=name in _STAY))
    return Table(columns, best, _left_out(len(shown), len(figures), "runs"))


def grouped(groups: pd.DataFrame, by: Sequence[str], target: float | None) -> Table:
    """What `fedsim.report.groups` gave, a line a group: mean and, of several runs, standard deviation; of more than 30
    groups the best.

    Args:
        groups: one row a group.
        by: the settings that make the groups.
        target: test accuracy whose cost is counted, for the heading.
    """
    shown, best = _ranked(groups.xs("mean", axis=1, level=1))
    columns = []
    for level, head in enumerate(short(by)):
        columns.append(_settings(head, groups.index.get_level_values(level).to_series().iloc[shown]))
    counts = [f"{n:,}" for n in groups["runs", "count"].iloc[shown]]
    columns.append(Column("runs", counts, right=True))
    for name, (head, kind) in _OF_GROUPS.items():
        if name not in groups:
            continue
        if name == "round_to_target" and target is not None:
            head = f"rounds to {written(target, 'share')}"
        figures = groups[name].iloc[shown]
        cells = [_spread(mean, around, kind) for mean, around in zip(figures["mean"], figures["std"], strict=True)]
        if name == "round_to_target":
            of = zip(groups["reached", "count"].iloc[shown], groups["runs", "count"].iloc[shown], strict=True)
            cells = [f"{cell} ({n} of {m})" if 0 < n < m else cell for cell, (n, m) in zip(cells, of, strict=True)]
        columns.append(Column(head, cells, right=True, stays=name in _STAY))
    return Table(columns, best, _left_out(len(shown), len(groups), "groups"))


def _ranked(figures: pd.DataFrame) -> tuple[list[int], list[int]]:
    """The rows to show, the best first where there are too many for all; and which of these are the best."""
    accuracies, losses = column(figures, "best_accuracy"), column(figures, "best_test_loss")
    values = np.where(np.isnan(accuracies), -losses, accuracies)
    values = np.where(np.isnan(values), -np.inf, values)
    order = np.argsort(-values, kind="stable") if len(values) > _MOST_ROWS else np.arange(len(values))
    shown = order[:_MOST_ROWS].tolist()
    best = [place for place, row in enumerate(shown) if values[row] == values.max() > -np.inf]
    return shown, best if len(best) < len(values) else []


def _left_out(shown: int, total: int, what: str) -> str:
    return "" if shown == total else f"the best {shown} of {total:,} {what}"


def short(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys; whole keys where the last words are the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [key if last.count(end) > 1 else end for key, end in zip(keys, last, strict=True)]


def _number(value: object) -> float | None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None  # pyright: ignore[reportArgumentType]


def _settings(head: str, values: pd.Series) -> Column:
    """Numbers end below one another, where all are numbers; what a run has no value of is a dash."""
    numbers = [_number(value) for value in values]
    missing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in values]
    cells = [str(value) if number is None else f"{number:.6g}" for value, number in zip(values, numbers, strict=True)]
    cells = [_DASH if none else cell for none, cell in zip(missing, cells, strict=True)]
    return Column(head, cells, right=all(n is not None or none for n, none in zip(numbers, missing, strict=True)))


def _figure(value: object, kind: str) -> str:
    number = _number(value)
    if number is None:
        return _DASH
    return f"{number:.3f}" if kind == "loss" else written(number, kind)


def _spread(mean: object, deviation: object, kind: str) -> str:
    number, around = _number(mean), _number(deviation)
    if number is None or around is None:
        return _figure(mean, kind)
    return f"{written(number, kind)} \u00b1 {written(float(f'{around:.2g}'), kind)}"
