"""bench/spill.py at its smallest: most updates lie in the file, and the rules find the centre that is known."""

import json

import pytest


@pytest.mark.slow  # an import of PyTorch in the program, and one in each of its processes
def test_spill(run, tmp_path):
    # two updates of 80,000 bytes stay in memory
    options = f"--rules trimmed_mean --updates 9 --size 20000 --memory-mib 0.2 --folder {tmp_path}"
    run("spill.py", options)
    rows = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [(row["rule"], row["updates"]) for row in rows] == [("trimmed_mean", 9)]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"], "the file has no name"
