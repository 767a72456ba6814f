"""Memory of robust rules whose updates do not fit it: more and more updates of FEMNIST's CNN, under one budget.

Each number of updates, 26.4 MB each, gets a process of its own: the updates are drawn and handed over one by one, as a
trainer does, up to `--memory-mib` of them stay in RAM, the others go to a file, and the rule makes its vector from
blocks of columns. Update i is centre + offset_i * scale, the offsets lying evenly around zero and the scale being of
either sign, so that the median and the trimmed mean of every column are the centre: the result is checked against it.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, release, write_report

from fedsim.robust import Aggregator, median, trimmed_mean
from fedsim.robust.store import UpdateStore

CPU = torch.device("cpu")
RULES = {"median": median, "trimmed_mean": trimmed_mean}


def measure(rule: str, num_updates: int, size: int, memory_mib: float, folder: Path | None) -> dict[str, Any]:
    """One rule on so many updates, in this process."""
    torch.set_num_threads(1)
    aggregator: Aggregator = RULES[rule](memory_mib=memory_mib, spill_dir=None if folder is None else str(folder))
    generator = torch.Generator().manual_seed(0)
    centre, scale = (torch.randn(size, generator=generator) for _ in range(2))
    offsets = np.random.default_rng(0).permutation(np.linspace(-1, 1, num_updates))
    release(CPU)
    with PeakMemory(CPU) as memory:
        begin = time.perf_counter()
        store = UpdateStore(
            range(num_updates), size, memory_bytes=aggregator.memory_mib * 2**20, directory=aggregator.spill_dir
        )
        for client, offset in enumerate(offsets.tolist()):
            store.put([client], torch.add(centre, scale, alpha=offset)[None], [1.0])
        received = time.perf_counter()
        assert aggregator.rule is not None
        found = aggregator.rule(store)
        end = time.perf_counter()
    worst = float((found - centre).abs().max())
    assert worst < 1e-5, f"{rule} of {num_updates} updates is off by {worst:.1e}"
    return {
        "rule": rule,
        "updates": num_updates,
        "updates_gib": rounded(num_updates * store.row_bytes / 2**30),
        "memory_mib": memory_mib,
        "file_gib": rounded(store.file_bytes / 2**30),
        "peak_mib_above_start": round((memory.peak - memory.start) / 2**20),
        "seconds_to_receive": rounded(received - begin),
        "seconds_of_rule": rounded(end - received),
    }


def rounded(value: float) -> float:
    return round(value, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--size", type=int, default=6_603_710, help="elements of an update, float32")
    parser.add_argument("--memory-mib", type=float, default=512.0)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--folder", type=Path, help="where the file lies while this runs; default: temporary files")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/spill.json")
    options = parser.parse_args()
    report = header("spill", argparse.Namespace(**{**vars(options), "folder": None}), CPU)
    rows = []
    context = multiprocessing.get_context("spawn")
    for rule in options.rules:
        for num_updates in options.updates:
            with context.Pool(1) as pool:
                arguments = (rule, num_updates, options.size, options.memory_mib, options.folder)
                rows.append(pool.apply(measure, arguments))
            print(rows[-1], flush=True)
    report["results"] = rows
    print_report(report, rows)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
