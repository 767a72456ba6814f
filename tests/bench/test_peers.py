"""bench/peers: fedsim and the naive loop do the same work, and a driver that fails is told of."""

import json

import pytest


@pytest.mark.slow  # four processes that import PyTorch
def test_fedsim_ends_where_the_naive_loop_ends(run, tmp_path):
    options = ["--check", "--rounds", "2", "--workloads", "W2", "--ways", "vectorized-100", "--threads", "1"]
    done = run("peers/run.py", *options, f"--peer pfl={tmp_path}/none", code=1)
    report = json.loads((tmp_path / "report.json").read_text())
    naive, absent, ours = report["results"]
    assert naive["deviation"] == 0
    assert ours["agrees"]
    assert 0 < ours["deviation"] < 1e-4
    assert not absent["agrees"]
    assert "not all systems end in naive's model" in done.stderr
    assert report["command"].startswith("python bench/peers/run.py ")
