"""Recorded runs as pandas frames and as one HTML page.

`python -m fedsim.report RUN_DIR...` writes the page; in a notebook, `runs(path)`, `frame(...)`, `curves(...)` and
`groups(...)` give the same figures as tables.
"""

from fedsim.report.runs import RecordedRun, differences, grouping, runs
from fedsim.report.tables import curves, default_target, frame, groups

__all__ = ["RecordedRun", "curves", "default_target", "differences", "frame", "grouping", "groups", "runs"]
