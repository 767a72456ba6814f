"""bench/client_state.py at its smallest: every row is read back, and only written clients take space."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "bench" / "client_state.py"


def test_client_state(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    out = tmp_path / "report.json"
    options = f"--size 25000 --clients 60 --clients-per-round 4 --rounds 6 --checkpoint-every 2 --folder {tmp_path}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options.split(), "--ram-gib", "0", "0.001", "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["results"]
    assert [row["ram_gib"] for row in rows] == [0, 0.001]
    assert all(4 <= row["clients_written"] <= 24 for row in rows)
    assert str(tmp_path) not in out.read_text()
