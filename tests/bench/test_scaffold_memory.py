"""bench/scaffold_memory.py at its smallest: the control variates that lie in the file add up to the server's."""

import json

import pytest


@pytest.mark.slow  # rounds of 6.6 million parameters
def test_scaffold_memory(run, tmp_path):
    options = "--clients 5 --clients-per-round 2 --samples 2 --rounds 3 --checkpoint-every 2 --ram-gib 0.03"
    run("scaffold_memory.py", options, f"--folder {tmp_path}")
    (row,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert row["mb_per_client"] == 26.41, "6,603,710 parameters of 4 bytes; one fits the memory that is allowed"
    assert 2 < row["clients_written"] <= 5
    assert row["file_gib"] > 0
    assert row["peak_gib"] < row["limit_gib"]
    assert row["control_error"] < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
