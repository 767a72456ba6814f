"""bench/report_page.py at its smallest: four runs, a page of them, and a browser that draws it."""

import json
import shutil

import pytest


def test_report_page(run, tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no Chromium here: apt-get install chromium")
    run("report_page.py", "--runs 4 --rounds 5 --repeats 1")
    (row,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert row["runs"] == 4
    assert 0.02 < row["megabytes"] < 1
    assert all(row[f"{name}_drawn_seconds"] > 0 for name in ("desk", "phone"))
