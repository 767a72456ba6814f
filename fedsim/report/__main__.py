"""`python -m fedsim.report RUN_DIR...`: one HTML page over one run or a sweep of hundreds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsim.report import text
from fedsim.report.page import page
from fedsim.report.runs import grouping, runs
from fedsim.report.tables import default_target, frame, groups
from fedsim.tracking.terminal import drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and print the groups; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.report", description="One self-contained HTML page over runs: curves, costs, clients."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run directories, or folders with runs below them")
    parser.add_argument("--out", default="report.html", help="the page (default: report.html)")
    parser.add_argument("--group-by", metavar="KEYS", help="settings, such as algorithm,local.learning_rate "
                        "(default: all that were chosen but the seed; the page can change it)")  # fmt: skip
    parser.add_argument("--target", type=float, help="test accuracy in [0, 1] whose cost is counted "
                        "(default: what half of the runs reach)")  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the table of runs there as well")
    options = parser.parse_args(arguments)
    try:
        recorded = runs(options.runs)
        if options.target is not None and not 0 < options.target <= 1:
            raise ValueError(f"--target must be in (0, 1], got {options.target}")
        by = grouping(recorded)
        if options.group_by is not None:
            by = [key.strip() for key in options.group_by.split(",") if key.strip()]
        figures = frame(recorded, target=options.target)
        grouped = groups(figures, by)
        out = Path(options.out)
        out.write_text(page(recorded, out.resolve().parent, by=by, target=options.target), encoding="utf-8")
        if options.csv:
            figures.to_csv(options.csv)
    except (ValueError, OSError) as error:
        print(f"fedsim: error: {error}", file=sys.stderr)
        return 1
    target = default_target(recorded) if options.target is None else options.target
    table = text.grouped(grouped, by, target)
    print(drawn(table, sys.stdout))
    counts = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((len(recorded), "run"), (len(grouped), "group")))
    print(f"{' in '.join(counts)}: open {out} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
