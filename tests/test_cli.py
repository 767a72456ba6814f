"""The command line: the debug experiment end to end, and every mistake in one line."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

DEBUG = "+experiment=debug"


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_debug_experiment_leaves_all_its_files(fedsim):
    done = fedsim(DEBUG)
    assert done.code == 0, done.err
    metrics = rows(done.directory)
    assert [row["round"] for row in metrics] == [1, 2, 3, 4, 5]
    promised = {
        "round", "train_loss", "test_loss", "test_accuracy", "seconds", "clients", "samples", "peak_memory_bytes",
    }  # fmt: skip
    assert promised <= metrics[-1].keys()
    with (done.directory / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in table] == [row["train_loss"] for row in metrics]
    with (done.directory / "clients.csv").open(newline="") as file:
        clients = list(csv.DictReader(file))
    assert len(clients) == 20
    summary = json.loads((done.directory / "summary.json").read_text())
    assert summary["data_source"] == "glyphs"
    assert "stand-in" in summary["notes"][0]
    assert "stand-in" in done.err
    assert "stand-in" in (done.directory / "run.log").read_text()
    assert summary["final"]["test_accuracy"] == metrics[-1]["test_accuracy"]
    assert summary["num_clients"] == 20
    assert summary["clients"]["client_accuracy_weighted"] == pytest.approx(metrics[-1]["test_accuracy"])
    assert load_file(done.directory / "model.safetensors")["head.weight"].shape == (62, 784)
    config = yaml.safe_load((done.directory / "config.yaml").read_text())
    assert config["local"]["learning_rate"] == 0.02
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]


def test_equal_seeds_give_equal_bytes_and_another_seed_does_not(fedsim, tmp_path):
    runs = [fedsim(DEBUG, f"seed={seed}", directory=tmp_path / name) for name, seed in [("a", 1), ("b", 1), ("c", 2)]]
    a, b, c = ((run.directory / "model.safetensors").read_bytes() for run in runs)
    assert a == b
    assert a != c


def test_multirun_makes_a_run_of_each_value(fedsim, tmp_path):
    done = fedsim("-m", DEBUG, "seed=1,2", "server.num_rounds=1", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    seeds = [json.loads((tmp_path / "sweep" / job / "summary.json").read_text())["seed"] for job in ("0", "1")]
    assert seeds == [1, 2]


def truncated_leaf(tmp_path: Path) -> list[str]:
    for split in ("train", "test"):
        folder = tmp_path / "leaf" / split
        folder.mkdir(parents=True)
        text = json.dumps({"users": ["w"], "num_samples": [1], "user_data": {"w": {"x": [[0.0] * 784], "y": [3]}}})
        (folder / "all.json").write_text(text[: len(text) // 2] if split == "train" else text)
    return [f"data.root={tmp_path / 'leaf'}"]


def leaf_with(tmp_path: Path, num_samples: int, label: object) -> list[str]:
    for split in ("train", "test"):
        folder = tmp_path / "leaf" / split
        folder.mkdir(parents=True)
        record = {"x": [[0.0] * 784, [1.0] * 784], "y": [3, label]}
        (folder / "all.json").write_text(
            json.dumps({"users": ["w"], "num_samples": [num_samples], "user_data": {"w": record}})
        )
    return [f"data.root={tmp_path / 'leaf'}"]


MISTAKES = {
    "misspelt key": (["local.lerning_rate=1"], "unknown option 'local.lerning_rate'; did you mean local.learning_rate"),
    "misspelt section": (["servr.num_rounds=1"], "unknown option 'servr.num_rounds'; did you mean server.num_rounds"),
    "added key": (["+local.lr=1"], "unknown option 'local.lr'"),
    "misspelt data key": (["data.sorce=leaf"], "unknown option 'data.sorce'; did you mean data.source"),
    "unknown group option": (["algorithm=fedavgg"], "algorithm=fedavgg does not exist; did you mean fedavg or "),
    "unknown experiment": (["+experiment=femnist"], "there is adult_dirichlet, "),
    "wrong type": (["local.batch_size=ten"], "local.batch_size must be a whole number, got 'ten'"),
    "a sweep without -m": (["seed=1,2"], "a run for each is a sweep, python -m fedsim -m ...; one list is seed=[1,2]"),
    "short for an option": (["local.lr=1"], "unknown option 'local.lr'; did you mean local.learning_rate?"),
    "no such option of a part": (["algorithm.proximal_weight=1"], "unknown option 'algorithm.proximal_weight'"),
    "a dashed option": (
        ["--lr=1"],
        "there is no --lr: options have no dashes, +experiment=NAME local.learning_rate=0.1",
    ),
    "a dashed experiment": (["--experiment", "debug"], "there is no --experiment: options have no dashes"),
    "wrong value": (["local.learning_rate=-1"], "local.learning_rate must not be negative, got -1.0"),
    "unknown device": (["device=tpu"], "device must be auto, cpu, cuda or cuda:N"),
    "a GPU without a number": (["device=cuda:x"], "device must be auto, cpu, cuda or cuda:N, got 'cuda:x'"),
    "unknown source": (["data.source=leav"], "data.source='leav' is unknown"),
    "no root": (["data.source=leaf"], "data.source=leaf needs data.root"),
    "missing root": (["data.root=/nowhere"], "/nowhere"),
    "mnist without files": (["+experiment=mnist_iid", "data.root=/nowhere"], "data.download=true"),
    "mnist without partition": (["data=cifar10", "partition=natural"], "cifar10"),
    "infeasible dirichlet": (["partition=dirichlet", "partition.num_clients=1000"], "partition.min_samples"),
    "too large a cohort": (["server.clients_per_round=21"], "there are 20 clients: choose 1 to 20"),
    "not a number": (["local.learning_rate=1e38"], "round 1: the"),
    "resume from nowhere": (["checkpoint.resume=/nowhere"], "no checkpoint.safetensors there"),
    "syntax": (["seed="], "seed"),
    "misspelt experiment group": (["+experimnt=debug"], "unknown option 'experimnt'; did you mean +experiment=NAME?"),
    "misspelt experiment": (["+experiment=debugg"], "experiment=debugg does not exist; did you mean debug?"),
    "misspelt group": (["algoritm=fedavg"], "unknown option 'algoritm'; did you mean algorithm"),
    "misspelt tracker": (["tracking=[tensorbord]"], "tracking=tensorbord does not exist; did you mean tensorboard?"),
    "early stop without evaluations": (["server.patience=1", "server.evaluate_every=0"], "need server.evaluate_every"),
    "an infinite rate": (["local.learning_rate=inf"], "local.learning_rate must be a finite number, got inf"),
    "a decay that is no number": (["local.weight_decay=nan"], "local.weight_decay must be a finite number, got nan"),
    "more steps than the memory can plan": (
        ["local.num_epochs=1000000000000"],
        "lower local.num_epochs (now 1000000000000)",
    ),
    "an option that a factory has not": (
        ["algorithm=fedprox", "+algorithm.proximal_wieght=1"],
        "unknown option 'algorithm.proximal_wieght'; did you mean algorithm.proximal_weight?",
    ),
    "an option of the wrong type": (["data.num_clients=many"], "data.num_clients must be a whole number or null, got"),
    "a model larger than the memory": (["model=mlp", "model.hidden_sizes=[1000000000000]"], "out of memory ("),
    "a model that takes no tokens": (
        ["+experiment=shakespeare", "model=logistic", "data.num_clients=5", "server.num_rounds=1", "trainer=serial"],
        "the model cannot take samples of shakespeare, of shape (80,) and type int64 (",
    ),
    "a bare word": (["femnist"], "'femnist' is no option: options are NAME=VALUE"),
    "two experiments": (["+experiment=debug", "+experiment=fcube"], "experiment is given twice: a run has one, given"),
    "a mistake inside of a part": (
        ["partition=iid", "partition.holdout.test_fraction=2"],
        "error: partition.holdout.test_fraction must be in [0, 1), got 2",
    ),
    "no attack": (["attack=null"], "~attack leaves it out"),
    "images to a wrong model": (["model.num_classes=3"], "unknown option 'model.num_classes'"),
}


def test_a_slip_in_a_file_of_ones_own_is_told_with_its_line(fedsim, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("server:\n  num_rounds: [1, 2\nseed: : 3\n")
    done = fedsim("--config-dir", str(tmp_path), "+experiment=mine")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("fedsim: error: ")
    assert "mine.yaml, line 3, is no YAML: expected ',' or ']'" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_helps(fedsim, name):
    arguments, message = MISTAKES[name]
    base = [DEBUG] if not any(a.startswith("+experiment") for a in arguments) else []
    done = fedsim(*base, *arguments)
    errors = [line for line in done.err.splitlines() if line.startswith("fedsim: error: ")]
    assert done.code == 1
    assert len(errors) == 1, done.err
    assert message in errors[0]
    assert "Traceback" not in done.err
    assert "Error executing job" not in done.err
    assert not (done.directory / "summary.json").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated_leaf, "all.json"),
        (lambda tmp: leaf_with(tmp, 5, 3), "w"),
        (lambda tmp: leaf_with(tmp, 2, 62), "62"),
    ],
    ids=["truncated", "num_samples", "label"],
)
def test_damaged_leaf_files_are_one_line(fedsim, tmp_path, make, message):
    done = fedsim(DEBUG, "data.num_clients=null", *make(tmp_path))
    (error,) = [line for line in done.err.splitlines() if line.startswith("fedsim: error: ")]
    assert done.code == 1
    assert "all.json" in error
    assert message in error


def test_a_run_directory_that_cannot_be_written_is_one_line(fedsim, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = fedsim(DEBUG, directory=tmp_path / "file" / "run")
    (error,) = [line for line in done.err.splitlines() if line.startswith("fedsim: error: ")]
    assert done.code == 1
    assert str(tmp_path / "file") in error


@pytest.mark.parametrize("every", [0, 1])
def test_a_run_directory_in_use_is_not_overwritten(fedsim, every):
    first = fedsim(DEBUG, "server.num_rounds=1", f"checkpoint.every={every}")
    before = (first.directory / "metrics.jsonl").read_bytes()
    again = fedsim(DEBUG, "server.num_rounds=1", f"checkpoint.every={every}")
    assert again.code == 1
    assert "already holds a run" in again.err
    assert (first.directory / "metrics.jsonl").read_bytes() == before


def test_a_directory_to_continue_that_is_not_there_is_not_made(fedsim, tmp_path):
    done = fedsim(DEBUG, "checkpoint.resume=typo")
    assert done.code == 1
    assert "checkpoint.resume=typo: no checkpoint.safetensors there" in done.err
    assert not (tmp_path / "typo").exists()


def test_quiet_says_only_what_is_wrong(fedsim):
    done = fedsim(DEBUG, "server.num_rounds=1", "tracking.quiet=true", "tracking.progress=true")
    assert done.code == 0
    assert len(done.err.splitlines()) == 1  # the stand-in's warning
    assert "round 1 of 1" in (done.directory / "run.log").read_text()


def test_a_user_who_asks_for_the_trace_gets_it(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "FEDSIM_TRACE"} | {"HYDRA_FULL_ERROR": "1"}
    package = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "fedsim", "local.lerning_rate=1"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**env, "PYTHONPATH": os.environ.get("PYTHONPATH", str(package))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_command_started_by_a_command_tells_its_mistakes_in_one_line_too(fedsim):
    """Hydra is told to raise through the environment, which nodes of a run inherit."""
    assert fedsim("+experiment=nothing").code == 1
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
    command = [sys.executable, "-m", "fedsim", "role=worker", "transport.address=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 1
    assert [line.startswith("fedsim: error: ") for line in done.stderr.splitlines()] == [True]


@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_sigterm_ends_a_run_as_ctrl_c_does_and_is_not_heard_twice(fedsim, monkeypatch, sent, code):
    """scancel and systemd send SIGTERM; srun sends it after a Ctrl-C, while the run puts its things in order."""
    from fedsim.recording import RunDirectory

    log, in_order = RunDirectory.log, []

    def ended(self, metrics):
        log(self, metrics)
        if metrics["round"] == 2:
            try:
                os.kill(os.getpid(), getattr(signal, sent))
                time.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                in_order.append(metrics["round"])

    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", ended)
        done = fedsim(DEBUG)
    assert done.code == code
    assert in_order == [2]
    assert f"fedsim: stopped; continue with checkpoint.resume={done.directory}" in done.err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGINT, ignored)
    assert not (done.directory / "summary.json").exists()


def test_options_may_stand_on_both_sides_of_a_flag(fedsim, tmp_path):
    (tmp_path / "own").mkdir()
    own = ["--config-dir", str(tmp_path / "own")]
    done = fedsim("+experiment=debug", *own, "server.num_rounds=1", "--cfg", "job", "seed=7", "trainer=serial")
    assert done.code == 0, done.err
    assert "seed: 7" in done.out
    assert "num_rounds: 1" in done.out
    swept = fedsim("+experiment=debug", "server.num_rounds=1", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert swept.code == 0, swept.err
    assert (tmp_path / "sweep" / "1" / "summary.json").exists()
