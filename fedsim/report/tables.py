"""The figures of a report: one row a run, one row a round, one row a group."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedsim.report.runs import RecordedRun, differences

# What a target can be measured in -> how it is counted up from the columns of metrics.jsonl.
AXES = ("round", "seconds", "virtual_seconds", "bytes")


def column(metrics: pd.DataFrame, name: str) -> np.ndarray:
    """(rounds,) float64; NaN where a round did not tell, and all NaN where none did."""
    if name not in metrics:
        return np.full(len(metrics), math.nan)
    return np.asarray(metrics[name], dtype=np.float64)


def axis(metrics: pd.DataFrame, name: str) -> np.ndarray | None:
    """(rounds,) what a run had spent when each of its rounds ended; None where its metrics do not tell.

    Args:
        metrics: one row a round.
        name: "round"; "seconds" of training on this machine; "virtual_seconds", the clock of simulated devices;
            "bytes", the sum of the columns `bytes_up` and `bytes_down`.
    """
    if name in ("round", "virtual_seconds"):
        return column(metrics, name) if name in metrics else None
    columns = [c for c in (("bytes_up", "bytes_down") if name == "bytes" else (name,)) if c in metrics]
    return np.cumsum(sum(np.nan_to_num(column(metrics, c)) for c in columns)) if columns else None


def curves(recorded: Sequence[RecordedRun]) -> pd.DataFrame:
    """All rounds of all runs: `run`, the settings that differ, then the columns of metrics.jsonl."""
    keys = differences(recorded)
    frames = [run.metrics.assign(run=run.name, **{key: run.config.get(key) for key in keys}) for run in recorded]
    joined = pd.concat(frames, ignore_index=True)
    return joined.loc[:, ["run", *keys, *(c for c in joined.columns if c != "run" and c not in keys)]]


def default_target(recorded: Sequence[RecordedRun]) -> float | None:
    """A test accuracy that at least half of the runs reach: the median of their best, down to a whole per cent."""
    best = [run.metrics["test_accuracy"].max() for run in recorded if "test_accuracy" in run.metrics]
    best = [accuracy for accuracy in best if not math.isnan(accuracy)]
    target = math.floor(100 * float(np.median(best)) + 1e-9) / 100 if best else 0.0
    return target or None


def frame(recorded: Sequence[RecordedRun], *, target: float | None = None) -> pd.DataFrame:
    """One row a run: the settings that differ, and what came of them. What a run does not tell is NaN.

    Args:
        recorded: what `runs` gave.
        target: test accuracy in [0, 1] whose cost is counted, in the columns `round_to_target` and so on; NaN where a
            run never got there. None: `default_target`.
    """
    target = default_target(recorded) if target is None else target
    keys = differences(recorded)
    rows = [{"run": run.name, **{key: run.config.get(key) for key in keys}, **_row(run, target)} for run in recorded]
    return pd.DataFrame(rows).set_index("run")


def _row(run: RecordedRun, target: float | None) -> dict[str, float | bool | str]:
    metrics = run.metrics
    row: dict[str, float | bool | str] = {"finished": run.finished, "rounds": int(column(metrics, "round")[-1])}
    row["train_loss"] = float(column(metrics, "train_loss")[-1])
    accuracy, loss = column(metrics, "test_accuracy"), column(metrics, "test_loss")
    evaluated = np.flatnonzero(~np.isnan(accuracy))
    if len(evaluated):
        best = evaluated[np.argmax(accuracy[evaluated])]
        row["final_accuracy"] = float(accuracy[evaluated[-1]])
        row["best_accuracy"], row["best_round"] = float(accuracy[best]), int(column(metrics, "round")[best])
        reached = np.flatnonzero(accuracy >= (math.inf if target is None else target))
        for name in AXES if target is not None else ():
            if (spent := axis(metrics, name)) is not None:
                row[f"{name}_to_target"] = float(spent[reached[0]]) if len(reached) else math.nan
    elif not np.isnan(loss).all():
        row["final_test_loss"] = float(loss[~np.isnan(loss)][-1])
        row["best_test_loss"], row["best_round"] = (
            float(np.nanmin(loss)),
            int(column(metrics, "round")[np.nanargmin(loss)]),
        )
    row["seconds_a_round"] = float(np.median(column(metrics, "seconds")))
    row["peak_memory_bytes"] = float(np.max(column(metrics, "peak_memory_bytes")))
    if run.clients is not None and "accuracy" in run.clients:
        clients = np.asarray(run.clients["accuracy"], dtype=np.float64)
        for q in (10, 50, 90):
            row[f"client_accuracy_p{q}"] = float(np.quantile(clients, q / 100))
        row["client_accuracy_worst"] = float(clients.min())
    return row


def groups(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation (n - 1; NaN for one run) over the runs that share the settings `by`.

    Args:
        table: what `frame` gave.
        by: columns of it; none: all runs are one group.

    Returns:
        One row a group, with columns (figure, "mean" or "std"), ("runs", "count"), and ("reached", "count"), the runs
        that got to the target, over which its figures are.

    Raises:
        ValueError: a column does not exist.
    """
    unknown = [key for key in by if key not in table]
    if unknown:
        known = ", ".join(settings(table)) or "nothing"
        raise ValueError(f"cannot group by {', '.join(unknown)}: the runs differ in {known}")
    first = settings(table)
    figures = [c for c in table.columns if c not in first and c != "finished"]
    over = table.groupby(list(by), dropna=False, sort=False) if by else table.groupby(lambda _: "all runs")
    grouped = pd.DataFrame(over[figures].agg(["mean", "std"]))
    grouped.insert(0, ("runs", "count"), over.size())
    if "round_to_target" in figures:
        grouped.insert(1, ("reached", "count"), over["round_to_target"].count())
    return grouped


def settings(table: pd.DataFrame) -> list[str]:
    """The columns of `frame` before the first figure: the settings in which the runs differ."""
    return list(table.columns[: list(table.columns).index("finished")])
