"""What is said when a run has ended: a few facts, which are also what is copied into notes."""

import math
from collections.abc import Mapping
from typing import Any

from fedsim.tracking.progress import duration


def outcome(summary: Mapping[str, Any]) -> dict[str, str]:
    """summary.json as a person reads it, under the name of each thing; what a run does not know is left out."""
    final, best, clients = (summary.get(part, {}) for part in ("final", "best", "clients"))
    lines: dict[str, str] = {}
    if "test_accuracy" in final:
        lines["test accuracy"] = _test(final)
    elif "test_loss" in final:
        lines["test loss"] = _test(final)
    if best:
        lines["best"] = f"{_test(best)}, in round {best['round']:,}"
    lines["training loss"] = f"{final['train_loss']:.3f}"
    if clients:
        name, form = ("accuracy", ".1%") if "client_accuracy_p50" in clients else ("loss", ".3f")
        percentiles = " / ".join(f"{clients[f'client_{name}_p{q}']:{form}}" for q in (10, 50, 90))
        of = "" if clients["split"] == "test" else f", on their {clients['split']} samples"
        lines["clients"] = f"{name} {percentiles} (10th, 50th, 90th percentile"
        few = f" of {clients['evaluated']:,} clients" if clients["evaluated"] < summary["num_clients"] else ""
        lines["clients"] += f"{few}; worst {clients[f'client_{name}_worst']:{form}}{of})"
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
    return lines


def _test(figures: Mapping[str, Any]) -> str:
    """69.7%, loss 1.021, top 5 accuracy 91.2%; without an accuracy the loss comes first, and alone."""
    parts = [f"{figures['test_accuracy']:.1%}, loss"] if "test_accuracy" in figures else []
    parts = [" ".join([*parts, f"{figures['test_loss']:.3f}"])]
    for name, value in figures.items():
        if name.startswith("test_") and name not in ("test_accuracy", "test_loss"):
            word = name.removeprefix("test_")
            parts.append(f"{word.replace('_', ' ')} {format(value, '.1%' if word.endswith('accuracy') else '.4g')}")
    return ", ".join(parts)


def size(num_bytes: float) -> str:
    """Bytes as a person reads them: 412 B, 3.1 KiB, 24 MiB, 1.5 GiB."""
    power = min(int(math.log(num_bytes, 1024)), 4) if num_bytes >= 1 else 0
    return f"{num_bytes / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
