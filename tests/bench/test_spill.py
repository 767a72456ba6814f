"""bench/spill.py at its smallest: most updates lie in the file, and the rules find the centre that is known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "bench" / "spill.py"


@pytest.mark.slow  # an import of PyTorch in the program, and one in each of its processes
def test_spill(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    out = tmp_path / "report.json"
    # two updates of 80,000 bytes stay in memory
    options = f"--rules trimmed_mean --updates 9 --size 20000 --memory-mib 0.2 --folder {tmp_path}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options.split(), "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["results"]
    assert [(row["rule"], row["updates"]) for row in rows] == [("trimmed_mean", 9)]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"], "the file has no name"
    assert str(tmp_path) not in out.read_text()
