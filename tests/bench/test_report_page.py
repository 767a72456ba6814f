"""bench/report_page.py at its smallest: four runs, a page of them, and a browser that draws it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "bench" / "report_page.py"


def test_report_page(tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no Chromium here: apt-get install chromium")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    out = tmp_path / "report.json"
    options = ["--runs", "4", "--rounds", "5", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["results"]
    assert row["runs"] == 4
    assert 0.02 < row["megabytes"] < 1
    assert all(row[f"{name}_drawn_seconds"] > 0 for name in ("desk", "phone"))
