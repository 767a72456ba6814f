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
    return lines


def size(num_bytes: float) -> str:
    """Bytes as a person reads them: 412 B, 3.1 KiB, 24 MiB, 1.5 GiB."""
    power = min(int(math.log(num_bytes, 1024)), 4) if num_bytes >= 1 else 0
    return f"{num_bytes / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
