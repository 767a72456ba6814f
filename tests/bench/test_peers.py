"""bench/peers: fedsim and the naive loop do the same work, and a driver that fails is told of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow  # four processes that import PyTorch
def test_fedsim_ends_where_the_naive_loop_ends(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    out = tmp_path / "report.json"
    options = ["--check", "--rounds", "2", "--workloads", "W2", "--ways", "vectorized-100", "--threads", "1"]
    done = subprocess.run(
        [
            sys.executable,
            str(BENCH / "peers" / "run.py"),
            *options,
            "--peer",
            f"pfl={tmp_path}/none",
            "--out",
            str(out),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(out.read_text())
    naive, absent, ours = report["results"]
    assert naive["deviation"] == 0
    assert ours["agrees"]
    assert 0 < ours["deviation"] < 1e-4
    assert not absent["agrees"]
    assert done.returncode != 0
    assert "not all systems end in naive's model" in done.stderr
    assert str(tmp_path) not in out.read_text()
    assert report["command"].startswith("python bench/peers/run.py ")
