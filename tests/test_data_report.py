"""`python -m fedsim.data_report`: a run's data before the run, and its manifest as the partition of another run."""

import json
import logging
import sys
from pathlib import Path

import pytest

from fedsim import data_report

DEBUG = ("+experiment=debug", "data.num_clients=6")


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command in this process: exit code, what it printed, its directory."""

    def run(*arguments: str) -> tuple[int, str, Path]:
        directory = tmp_path / "report"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["data_report", *arguments, f"hydra.run.dir={directory}"])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        root, code = logging.getLogger(), 0
        before = list(root.handlers)
        try:
            data_report.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for handler in [h for h in root.handlers if h not in before]:
                root.removeHandler(handler)
                handler.close()
        printed = capsys.readouterr()
        return code, printed.out + printed.err, directory

    return run


def test_a_report_of_a_run_and_the_run_that_replays_it(report, fedsim):
    options = ["partition=dirichlet_sized", "partition.num_clients=5", "partition.holdout.validation_fraction=0.2"]
    code, printed, directory = report(*DEBUG, *options)
    assert code == 0, printed
    summary = json.loads((directory / "data_report.json").read_text())
    assert summary["partition"]["recipe"]["name"] == "dirichlet_sized"
    assert summary["partition"]["digest"] in printed
    assert (directory / "class_map.png").exists()
    assert not (directory / "summary.json").exists()  # nothing was trained

    replay = ["partition=from_file", f"partition.path={directory / 'partition.npz'}"]
    few = ["server.num_rounds=1", "server.clients_per_round=2"]
    original = fedsim(*DEBUG, *options, *few, directory=directory.parent / "original")
    replayed = fedsim(*DEBUG, *replay, *few, directory=directory.parent / "replayed")
    assert replayed.code == 0, replayed.err
    models = [(run.directory / "model.safetensors").read_bytes() for run in (original, replayed)]
    assert models[0] == models[1]
    clients = json.loads((replayed.directory / "summary.json").read_text())["clients"]
    assert clients["split"] == "validation"

    other = fedsim("+experiment=debug", "data.num_clients=7", *replay, directory=directory.parent / "other")
    assert other.code == 1
    assert "partition.npz: the partition is of " in other.err


def test_a_mistake_is_one_line(report):
    code, printed, directory = report(*DEBUG, "partition=shards", "partition.num_clients=1000000")
    assert code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("fedsim: error: ")]
    assert "cannot cut" in line
    assert not (directory / "partition.npz").exists()


def test_a_partition_of_ones_own_has_a_report_without_manifest(report, tmp_path, monkeypatch):
    (tmp_path / "my_partitions.py").write_text(
        "import numpy as np\n"
        "def halves(dataset, seed):\n"
        "    n = len(dataset.train.inputs)\n"
        "    return dataset.with_clients(np.array([0, n // 2, n]), np.arange(n), ['a', 'b'])\n"
    )
    (tmp_path / "my_conf" / "partition").mkdir(parents=True)
    (tmp_path / "my_conf" / "partition" / "halves.yaml").write_text("_target_: my_partitions.halves\n_partial_: true\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, printed, directory = report("--config-dir", "my_conf", *DEBUG, "partition=halves")
    assert code == 0, printed
    assert "has no manifest" in printed
    assert (directory / "clients.csv").read_text().splitlines()[1].startswith("a,")
    assert not (directory / "partition.npz").exists()
