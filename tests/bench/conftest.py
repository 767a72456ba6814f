"""Runs a program of bench/ in a process of its own, as its users do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("spill.py", "--updates 9", ...)` ends well, or with `code`, and leaves its report in `tmp_path/report.json`,
    which names no folder of this machine."""

    def run(program: str, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        # a program finds the modules beside it unless this is set, as continuous integration does for the tests' sake
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
        out = tmp_path / "report.json"
        words = [word for option in options for word in option.split()]
        done = subprocess.run(
            [sys.executable, str(BENCH / program), *words, "--out", str(out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert str(tmp_path) not in out.read_text()
        return done

    return run
