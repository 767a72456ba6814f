"""The page: figures as JSON inside one HTML file, drawn by the script that the file carries. Nothing is fetched.

The table of runs is plain HTML, so that it can be read, searched and copied where no script runs.
"""

import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from fedsim.report.runs import RecordedRun, differences, grouping
from fedsim.report.tables import AXES, axis, column, default_target, frame

_HERE = Path(__file__).resolve().parent
_MOST_POINTS = 300  # of a curve: more than a screen shows
_MOST_POINTS_IN_ALL = 20_000  # of the curves of one metric; each of hundreds of runs is then thinned, to 60 at least
_DASH = "\u2013"  # for what is not known, as page.js has it
_SCRIPTS = ("chart.js", "partition.js", "page.js")
_FILES = ("summary.json", "config.yaml", "metrics.csv", "clients.csv", "run.log")
_NOT_DRAWN = ("round", "evaluate_seconds")
_QUANTILES = np.linspace(0, 1, 51)
_LEVELS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))

# Column of `frame` -> heading and kind, which decides how a number is written (here and in page.js).
COLUMNS = {
    "best_accuracy": ("best accuracy", "share"),
    "best_test_loss": ("best test loss", "loss"),
    "best_round": ("in round", "count"),
    "final_accuracy": ("final accuracy", "share"),
    "final_test_loss": ("final test loss", "loss"),
    "round_to_target": ("rounds to target", "count"),
    "virtual_seconds_to_target": ("virtual time to target", "seconds"),
    "bytes_to_target": ("bytes to target", "bytes"),
    "seconds_to_target": ("training time to target", "seconds"),
    "client_accuracy_p10": ("clients' 10th percentile", "share"),
    "client_accuracy_p50": ("clients' median", "share"),
    "seconds_a_round": ("time a round", "seconds"),
    "peak_memory_bytes": ("peak memory", "bytes"),
    "rounds": ("rounds", "count"),
}


def page(
    recorded: Sequence[RecordedRun], folder: Path, *, by: Sequence[str] | None = None, target: float | None = None
) -> str:
    """The report as HTML.

    Args:
        recorded: what `runs` gave; at least one.
        folder: where the page will lie; its links to the runs' files are relative to it.
        by: the settings by which runs are grouped at first; None: `grouping`.
        target: as for `frame`.
    """
    target = default_target(recorded) if target is None else target
    table, differing = frame(recorded, target=target), differences(recorded)
    by = grouping(recorded) if by is None else list(by)
    keys = [key for key in differing if key in by or key in grouping(recorded) or key == "seed"]
    columns = {name: about for name, about in COLUMNS.items() if name in table}
    by_loss = not any(run.clients is not None and "accuracy" in run.clients for run in recorded)
    judged = "loss" if by_loss else "accuracy"
    most_points = int(np.clip(_MOST_POINTS_IN_ALL // len(recorded), 60, _MOST_POINTS))
    kept = [None if run.partition is None else json.dumps(run.partition) for run in recorded]
    partitions = {text: index for index, text in enumerate(dict.fromkeys(text for text in kept if text is not None))}
    data = {
        "keys": keys,
        "by": by,
        "target": target,
        "columns": columns,
        "judged": judged,
        "metrics": _metrics(recorded),
        "axes": [name for name in AXES if any(axis(run.metrics, name) is not None for run in recorded)],
        "partitions": [_partition(json.loads(text)) for text in partitions],
        "runs": [
            {
                **_run(run, row, keys, columns, most_points, judged),
                "partition": None if text is None else partitions[text],
            }
            for run, (_, row), text in zip(recorded, table.iterrows(), kept, strict=True)
        ],
    }
    parts = {
        "title": html.escape(_title(recorded)),
        "facts": _facts(recorded),
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "runs": _runs_table(recorded, table, keys, columns, folder),
        "common": _common(recorded, keys),
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
    }
    text = (_HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def _title(recorded: Sequence[RecordedRun]) -> str:
    names = sorted({str(run.summary.get("name") or run.config.get("name") or "runs") for run in recorded})
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _facts(recorded: Sequence[RecordedRun]) -> str:
    """What is known of all runs, as list items; warnings of the data among them."""
    unfinished = sum(not run.finished for run in recorded)
    facts = [f"{len(recorded)} run{'s' if len(recorded) > 1 else ''}"]
    if unfinished:
        facts.append(f"{unfinished} of them unfinished")
    for key, text in (("num_clients", "{:,} clients"), ("num_parameters", "{:,} parameters")):
        values = sorted({run.summary[key] for run in recorded if key in run.summary})
        if values:
            facts.append(" or ".join(text.format(value) for value in values[:3]))
    for key in ("data", "trainer", "device"):
        facts += sorted({str(run.summary[key]) for run in recorded if key in run.summary})[:3]
    notes = dict.fromkeys(note for run in recorded for note in run.summary.get("notes", []))
    items = [f"<li>{html.escape(fact)}</li>" for fact in facts]
    return "".join(items + [f'<li class="note">{html.escape(note)}</li>' for note in notes])


def _metrics(recorded: Sequence[RecordedRun]) -> list[str]:
    """The columns that can be drawn, the ones that matter most first."""
    known = ("test_accuracy", "test_loss", "train_loss")
    columns = dict.fromkeys(c for run in recorded for c in run.metrics.select_dtypes("number").columns)
    return [c for c in known if c in columns] + [c for c in columns if c not in known and c not in _NOT_DRAWN]


def _run(
    run: RecordedRun, row: pd.Series, keys: Sequence[str], columns: dict[str, Any], most_points: int, judged: str
) -> dict[str, Any]:
    axes = {name: spent for name in AXES if (spent := axis(run.metrics, name)) is not None}
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # metric -> its rows, thinned; its values there
    for name in _metrics([run]):
        values = column(run.metrics, name)
        rows = np.flatnonzero(~np.isnan(values))
        if len(rows) > most_points:
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, most_points).astype(int))]
        shown[name] = (rows, values[rows])
    kept = np.unique(np.concatenate([rows for rows, _ in shown.values()]))  # the axes are written once, not for each
    curves = {
        name: {"y": _numbers(values), "at": None if len(rows) == len(kept) else np.searchsorted(kept, rows).tolist()}
        for name, (rows, values) in shown.items()
    }
    clients = None if run.clients is None or judged not in run.clients else np.asarray(run.clients[judged])
    return {
        "name": run.name,
        "settings": [None if (value := run.config.get(key)) is None else str(value) for key in keys],
        "values": {name: _number(row[name]) for name in columns},
        "axes": {name: _numbers(spent[kept]) for name, spent in axes.items()},
        "curves": curves,
        "clients": None if clients is None else _numbers(np.quantile(clients, _QUANTILES)),
    }


def _partition(outline: dict[str, Any]) -> dict[str, Any]:
    """An outline (`fedsim.data.outline`) for the page: a column of class shares becomes a letter a class.

    Letters are 64 levels of the square root of the share, so that a class of few samples still shows; A is none at all.
    """
    if "columns" not in outline:
        return outline
    columns = np.asarray(outline["columns"], dtype=np.float64)
    totals = columns.sum(1)
    levels = np.ceil(63 * np.sqrt(columns / totals[:, None])).astype(int)
    single = outline["a_column"] == 1
    letters = ["".join(column) for column in _LEVELS[levels]]
    return {**outline, "columns": letters, "totals": totals.astype(int).tolist() if single else None}


def _number(value: Any) -> float | None:
    """Six digits are more than a drawing shows, and keep a page over hundreds of runs small."""
    return float(f"{value:.6g}") if isinstance(value, int | float | np.number) and math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _runs_table(
    recorded: Sequence[RecordedRun], table: pd.DataFrame, keys: Sequence[str], columns: dict[str, Any], folder: Path
) -> str:
    heads = ["run", *keys, *(heading for heading, _ in columns.values()), "files"]
    lines = ["<thead><tr>", *(f"<th>{html.escape(head)}</th>" for head in heads), "</tr></thead><tbody>"]
    for run, (_, row) in zip(recorded, table.iterrows(), strict=True):
        state = "" if run.finished else ' <span class="state">unfinished</span>'
        where = quote(os.path.relpath(run.path, folder).replace(os.sep, "/"))
        lines.append(f'<tr><td class="name"><a href="{where}/">{html.escape(run.name)}</a>{state}</td>')
        settings = (run.config.get(key) for key in keys)
        lines += [f"<td>{_DASH if value is None else html.escape(str(value))}</td>" for value in settings]
        for name, (_, kind) in columns.items():
            value = _number(row[name])
            sort = "" if value is None else f' data-value="{value}"'
            lines.append(f'<td class="number"{sort}>{written(value, kind)}</td>')
        links = [f'<a href="{where}/{file}">{file}</a>' for file in _FILES if (run.path / file).exists()]
        lines.append(f'<td class="files">{" ".join(links)}</td></tr>')
    return "".join([*lines, "</tbody>"])


def _common(recorded: Sequence[RecordedRun], keys: Sequence[str]) -> str:
    """The settings that are no column of the table, and the same in all runs that have them."""
    lines = []
    for key in dict.fromkeys(key for run in recorded for key in run.config if key not in keys):
        values = [run.config[key] for run in recorded if key in run.config]
        if len({repr(value) for value in values}) == 1:
            of = "" if len(values) == len(recorded) else f" (of {len(values)} runs; the others have no such setting)"
            lines.append(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(values[0]))}{of}</dd>")
    return "".join(lines)


def written(value: float | None, kind: str) -> str:
    """A number as a person reads it: a share in per cent, bytes in powers of 1024, seconds up to hours."""
    if value is None:
        return _DASH
    if kind == "share":
        return f"{100 * value:.1f}%"
    if kind == "bytes":
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if kind == "seconds":
        if value >= 3600:
            return f"{value / 3600:.3g} h"
        return f"{value / 60:.3g} min" if value >= 60 else f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = min(int(math.log(value, base)) if value >= 1 else 0, len(units) - 1)
    return f"{value / base**power:.3g} {units[power]}"
