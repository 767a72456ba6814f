"""What is said when a run or a sweep has ended: a few aligned lines, which are also what is copied into notes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.tracking.progress import duration

Cell = str | float | None


def outcome(summary: Mapping[str, Any]) -> str:
    """summary.json as a table of two columns; what a run does not know has no line."""
    final, best, clients = (summary.get(part, {}) for part in ("final", "best", "clients"))
    lines: dict[str, str] = {}
    if "test_accuracy" in final:
        lines["test accuracy"] = f"{final['test_accuracy']:.1%}, loss {final['test_loss']:.3f}"
    if best:
        lines["best"] = f"{best['test_accuracy']:.1%}, loss {best['test_loss']:.3f}, in round {best['round']:,}"
    lines["training loss"] = f"{final['train_loss']:.3f}"
    if clients:
        percentiles = (clients[f"client_accuracy_p{q}"] for q in (10, 50, 90))
        of = "" if clients["split"] == "test" else f", on their {clients['split']} samples"
        lines["clients"] = "accuracy {:.1%} / {:.1%} / {:.1%} (10th, 50th, 90th percentile".format(*percentiles)
        few = f" of {clients['evaluated']:,} clients" if clients["evaluated"] < summary["num_clients"] else ""
        lines["clients"] += f"{few}; worst {clients['client_accuracy_worst']:.1%}{of})"
    lines["time"] = f"{duration(summary['seconds_per_round_median'])} a round (median); "
    lines["time"] += f"{duration(summary['seconds_training'])} training, "
    lines["time"] += f"{duration(summary['seconds_evaluating'])} evaluating"
    if "virtual_seconds" in summary:
        lines["virtual time"] = duration(summary["virtual_seconds"])
    if "privacy" in summary:
        private = summary["privacy"]
        lines["privacy"] = f"epsilon {private['epsilon']:.3g} at delta {private['delta']:.1g}, {private['neighbours']}"
    lines["memory"] = f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak"
    sent = [f"{size(summary[f'bytes_{way}'])} {way}" for way in ("up", "down") if f"bytes_{way}" in summary]
    if sent:
        lines["sent"] = ", ".join(sent)
    return "\n".join(f"  {name:<15}{text}" for name, text in lines.items())


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> str:
    """Aligned columns: words left, numbers right, None as a dash.

    Args:
        heads: one for each column.
        rows: their cells; numbers to three digits, shares are given as text.
        width: of the terminal: columns that do not fit, from the right, are left out and "..." stands for them.
    """
    cells = [[_written(cell) for cell in row] for row in rows]
    numbers = [all(isinstance(row[c], int | float | None) for row in rows) for c in range(len(heads))]
    widths = [max(len(line[c]) for line in [heads, *cells]) for c in range(len(heads))]
    shown = max([n for n in range(1, len(heads) + 1) if sum(widths[:n]) + 2 * n + 5 * (n < len(heads)) <= width] or [1])
    lines = []
    for line in [heads, *cells]:
        parts = [line[c].rjust(widths[c]) if numbers[c] else line[c].ljust(widths[c]) for c in range(shown)]
        more = "  ..." if shown < len(heads) else ""
        lines.append(("  " + "  ".join(parts) + more).rstrip())
    return "\n".join(lines)


def size(num_bytes: float) -> str:
    """Bytes as a person reads them: 412 B, 3.1 KiB, 24 MiB, 1.5 GiB."""
    power = min(int(math.log(num_bytes, 1024)), 4) if num_bytes >= 1 else 0
    return f"{num_bytes / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _written(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if float(cell).is_integer() else f"{cell:.3g}"
