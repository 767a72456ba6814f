"""Under Slurm itself, where there is one: the tasks of one srun find each other and end in the bits of one process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedsim

DEBUG = ["+experiment=debug", "data.num_clients=8", "server.num_rounds=3", "trainer=serial"]
SRUN = ["srun", "--immediate=60", "--nodes=1", "--overcommit"]


@pytest.fixture
def srun(tmp_path: Path) -> list[str]:
    """srun for one node, which has this Python and sees tmp_path."""
    if shutil.which("srun") is None or shutil.which("sinfo") is None:
        pytest.skip("needs Slurm: there is no sinfo")
    try:
        answer = subprocess.run(["sinfo", "--noheader", "--format=%a"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        pytest.skip("needs Slurm: sinfo does not answer")
    if answer.returncode != 0 or "up" not in answer.stdout.split():
        pytest.skip(f"needs Slurm with a partition that is up: {(answer.stderr or answer.stdout).strip()[:100]}")
    seen = ["test", "-d", str(tmp_path), "-a", "-x", sys.executable]
    if subprocess.run([*SRUN, "--ntasks=1", *seen], capture_output=True, timeout=120).returncode != 0:
        pytest.skip("needs a node of Slurm that is free within a minute and sees the folders of this one")
    return SRUN


def test_the_tasks_of_srun_are_a_server_and_its_workers(fedsim, tmp_path, srun, secret, finish_srun):
    alone = fedsim(*DEBUG, directory=tmp_path / "alone")
    assert alone.code == 0, alone.err
    out = finish_srun([*srun, "--ntasks=3"], *DEBUG, "transport=torch_distributed", "hydra.run.dir=together")
    assert "waiting for 2 workers at " in out
    assert {line for line in out.splitlines() if line.endswith(" joined")} == {"task_1 joined", "task_2 joined"}
    assert out.count("stand-in") == 1  # what all nodes would note, the server does
    written = (tmp_path / "together" / "run.log").read_text()
    assert "task_1 joined" in written
    assert "task_1 joined " not in written.replace("task_1 joined\n", ""), "a worker has written to the server's file"
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("alone", "together")]
    assert models[0] == models[1]


@pytest.fixture
def finish_srun(tmp_path: Path):
    """Runs `srun ... python -m fedsim ARGUMENTS` in tmp_path to its good end, and gives what it printed."""
    path = os.pathsep.join(
        filter(None, [str(Path(fedsim.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
    )

    def run(srun: list[str], *arguments: str) -> str:
        done = subprocess.run(
            [*srun, sys.executable, "-m", "fedsim", *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run
