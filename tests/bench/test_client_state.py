"""bench/client_state.py at its smallest: every row is read back, and only written clients take space."""

import json


def test_client_state(run, tmp_path):
    options = f"--size 25000 --clients 60 --clients-per-round 4 --rounds 6 --checkpoint-every 2 --folder {tmp_path}"
    run("client_state.py", options, "--ram-gib 0 0.001")
    rows = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [row["ram_gib"] for row in rows] == [0, 0.001]
    assert all(4 <= row["clients_written"] <= 24 for row in rows)
