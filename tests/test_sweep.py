"""Sweeps: what is finished is not run again, what was interrupted continues, and mistakes do not stop the others."""

import atexit
import gc
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.utils import JobReturn, JobStatus

from fedsim.cli import conf_dir
from fedsim.sweep import SweepEnd, first, queued, survive

SWEEP = ("-m", "+experiment=debug", "data.num_clients=8", "server.clients_per_round=4", "server.num_rounds=3")


def summary(job: Path) -> dict:
    return json.loads((job / "summary.json").read_text())


def models(folder: Path) -> dict[str, bytes]:
    return {job.name: (job / "model.safetensors").read_bytes() for job in sorted(folder.iterdir()) if job.is_dir()}


@pytest.mark.slow
def test_an_interrupted_sweep_continues_with_only_what_is_missing(fedsim, tmp_path, monkeypatch):
    whole = fedsim(*SWEEP, "seed=1,2,3,4", "hydra.sweep.dir=whole")
    assert whole.code == 0, whole.err
    assert "4 of 4 runs finished; python -m fedsim.report whole" in whole.err
    heads, *lines = [line.strip("* ").split() for line in whole.err.split("\n  job ")[1].splitlines()[:5]]
    assert heads[:3] == ["seed", "best", "final"]
    assert [line[:2] for line in lines] == [["0", "1"], ["1", "2"], ["2", "3"], ["3", "4"]]
    assert lines[0][2] == f"{summary(tmp_path / 'whole' / '0')['best']['test_accuracy']:.1%}"

    import fedsim.recording as module

    log, seen = module.RunDirectory.log, []

    def interrupted(self, metrics):
        seen.append((self.path.name, metrics["round"]))
        if seen[-1] == ("1", 3):
            raise KeyboardInterrupt
        log(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(module.RunDirectory, "log", interrupted)
        stopped = fedsim(*SWEEP, "seed=1,2,3,4", "hydra.sweep.dir=sweep")
    assert stopped.code == 130
    assert "continue with checkpoint.resume=sweep" in stopped.err
    assert not (tmp_path / "sweep" / "1" / "summary.json").exists()
    first = (tmp_path / "sweep" / "0" / "summary.json").stat().st_mtime_ns

    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            module.RunDirectory, "log", lambda self, m: (seen.append((self.path.name, m["round"])), log(self, m))
        )
        resumed = fedsim(*SWEEP, "seed=1,2,3,4", "checkpoint.resume=sweep")
    assert resumed.code == 0, resumed.err
    # checkpoint.every is 1 in the debug experiment: job 1 had saved its second round
    assert seen == [("1", 3), *((job, round) for job in ("2", "3") for round in (1, 2, 3))]
    assert (tmp_path / "sweep" / "0" / "summary.json").stat().st_mtime_ns == first
    assert models(tmp_path / "sweep") == models(tmp_path / "whole")

    longer = fedsim(*SWEEP, "seed=1,2,3,4,5", "checkpoint.resume=sweep")
    assert longer.code == 0, longer.err
    assert "5 of 5 runs finished" in longer.err
    reordered = fedsim(*SWEEP, "seed=2,1,3,4,5", "checkpoint.resume=sweep")
    assert reordered.code == 1
    assert "differs in seed: give the sweep's values in the order they had" in reordered.err


def test_a_job_that_met_an_easier_target_goes_on_with_a_harder_one(fedsim, tmp_path):
    def sweep(*more: str) -> tuple[int, bool]:
        done = fedsim(*SWEEP, "seed=1", "hydra.sweep.dir=sweep", *more)
        assert done.code == 0, done.err
        return summary(tmp_path / "sweep" / "0")["rounds"], "has finished before" in done.err

    assert sweep("server.stop_at_accuracy=0.001") == (1, False)
    assert sweep("server.stop_at_accuracy=0.0015", "checkpoint.resume=sweep") == (1, True)
    assert sweep("server.stop_at_accuracy=1", "checkpoint.resume=sweep") == (3, False)


def test_a_mistake_in_one_job_is_told_and_the_others_run(fedsim, tmp_path):
    done = fedsim(*SWEEP, "local.learning_rate=-1,0.02", "hydra.sweep.dir=sweep")
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if "error" in line.lower()]
    assert errors == ["fedsim: error: local.learning_rate must not be negative, got -1.0"]
    assert "1 of 2 runs finished" in done.err
    assert "not finished: 0;" in done.err
    assert summary(tmp_path / "sweep" / "1")["rounds"] == 3


def test_what_all_jobs_would_say_is_said_once_a_sweep(fedsim, tmp_path):
    """The note on the stand-in data; each job's own files have it all the same, and the next sweep says it again."""
    for arguments in (["hydra.sweep.dir=sweep"], ["checkpoint.resume=sweep", "server.num_rounds=4"]):
        done = fedsim(*SWEEP, "seed=1,2,3", *arguments)
        assert done.code == 0, done.err
        assert done.err.count("stand-in") == 1
        assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1", "2"]
    for job in ("0", "1", "2"):
        assert "WARNING femnist is a generated stand-in" in (tmp_path / "sweep" / job / "run.log").read_text()
        assert "stand-in" in summary(tmp_path / "sweep" / job)["notes"][0]


def test_a_job_of_a_sweep_leaves_nothing_alive(fedsim, monkeypatch):
    """What is alive as each of six jobs in one process ends: of the same kinds, as much as after the one before.

    The first two are left out: they fill what is filled once.
    """
    alive: list[Counter[str]] = []
    end = SweepEnd.on_job_end

    def count(self, config, job_return, **rest):
        end(self, config, job_return, **rest)
        gc.collect()
        kinds = (type(thing) for thing in gc.get_objects())
        names = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        ours = ("fedsim", "hydra", "omegaconf", "torch", "logging", "tqdm", "weakref", "threading", "matplotlib")
        alive.append(Counter({name: n for name, n in names.items() if name.partition(".")[0] in ours}))
        alive[-1]["handlers"] = len(logging.getLogger().handlers)
        alive[-1]["atexit"] = atexit._ncallbacks()

    monkeypatch.setattr(SweepEnd, "on_job_end", count)
    done = fedsim(*SWEEP, "seed=1,2,3,4,5,6", "server.num_rounds=1", "trainer=vectorized", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert len(alive) == 6
    assert alive[2]["omegaconf.dictconfig.DictConfig"] > 0
    grown = {name: [n[name] for n in alive] for name in alive[-1] if alive[-1][name] > alive[2][name]}
    assert grown.keys() == {"hydra.core.utils.JobReturn"}, grown  # by which Hydra keeps the values of all jobs


def test_a_line_is_new_once_in_each_folder(tmp_path):
    asked = [(tmp_path / name, text) for name in ("a", "b") for text in ("one", "two", "one")]
    assert [first(folder, text) for folder, text in asked] == [True, True, False] * 2


def test_a_sweep_folder_in_use_is_not_overwritten(fedsim, tmp_path):
    fedsim(*SWEEP, "seed=1", "hydra.sweep.dir=sweep", "checkpoint.every=0")
    before = (tmp_path / "sweep" / "0" / "metrics.jsonl").read_bytes()
    again = fedsim(*SWEEP, "seed=1", "hydra.sweep.dir=sweep", "checkpoint.every=0")
    assert again.code == 1
    assert "already holds a run; give another hydra.sweep.dir, or checkpoint.resume=sweep" in again.err
    assert (tmp_path / "sweep" / "0" / "metrics.jsonl").read_bytes() == before


def test_a_sweep_to_continue_that_is_not_there_is_not_made(fedsim, tmp_path):
    done = fedsim(*SWEEP, "seed=1", "checkpoint.resume=typo")
    assert done.code == 1
    assert "checkpoint.resume=typo: no such folder" in done.err
    assert not (tmp_path / "typo").exists()


# What this test run has set, for itself or by calling the command in this process.
_OURS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HYDRA_FULL_ERROR", "FEDSIM_TRACE")


def run_in_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: plugins start others, or keep state."""
    package = str(conf_dir().parent if conf_dir().parent.name != "fedsim" else conf_dir().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    env = {k: v for k, v in os.environ.items() if k not in _OURS}
    return subprocess.run(
        [sys.executable, "-m", "fedsim", *arguments],
        cwd=folder, env={**env, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@pytest.mark.slow
def test_jobs_side_by_side_divide_the_threads(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install '.[sweep]'")
    jobs = "local.learning_rate=-1,0.02,0.03"
    done = run_in_process(tmp_path, *SWEEP, "+sweep=parallel", jobs, "hydra.sweep.dir=sweep")
    assert done.returncode == 1  # one of the three is a mistake
    assert "fedsim: error: local.learning_rate must not be negative, got -1.0" in done.stderr
    assert "2 of 3 runs finished" in done.stderr
    assert "Traceback" not in done.stderr
    found = {summary(tmp_path / "sweep" / job)["versions"]["threads"] for job in ("1", "2")}
    assert found == {str(max(1, (os.cpu_count() or 1) // 2))}


@pytest.mark.slow
def test_submitit_runs_the_jobs(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install '.[slurm]'")
    on_slurm = run_in_process(tmp_path, "+sweep=slurm", "--cfg", "hydra", "-p", "hydra.launcher")
    assert "SlurmLauncher" in on_slurm.stdout, on_slurm.stderr
    jobs = ["local.learning_rate=-1,0.02", "hydra.sweep.dir=sweep"]
    done = run_in_process(tmp_path, *SWEEP, "hydra/launcher=submitit_local", *jobs)
    assert done.returncode == 1  # one of the two is a mistake
    assert "1 of 2 runs finished" in done.stderr
    # the jobs print into files of their own, and the command tells what is in them
    assert "fedsim: error: job 0: local.learning_rate must not be negative, got -1.0" in done.stderr.splitlines()
    assert summary(tmp_path / "sweep" / "1")["rounds"] == 3


class Uncompleted(RuntimeError):
    """In the place of submitit's error for a job that left nothing."""


class SlurmJob:
    """A job as submitit describes it: number `index` of the sweep, of Slurm's array 7."""

    def __init__(self, index: int, outcome: JobReturn | Exception) -> None:
        self.job_id, self.state, self.outcome = f"7_{index}", "TIMEOUT", outcome
        self.paths = SimpleNamespace(stderr=f"sweep/.submitit/7_{index}/7_{index}_0_log.err")

    def submission(self) -> SimpleNamespace:
        return SimpleNamespace(args=(["seed=1"], "hydra.sweep.dir", int(self.job_id.partition("_")[2]), "id", {}))

    def results(self) -> list[JobReturn]:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return [self.outcome]


def test_a_job_that_slurm_has_ended_is_told_in_a_line_and_the_others_are_waited_for(capsys):
    whole = JobReturn(status=JobStatus.COMPLETED)
    whole.return_value = 0.5
    stopped, broken = JobReturn(status=JobStatus.FAILED), JobReturn(status=JobStatus.FAILED)
    stopped.return_value, broken.return_value = Uncompleted("timed out"), KeyError("a mistake of ours")
    outcomes: list[JobReturn | Exception] = [Uncompleted("killed"), whole, stopped, broken]
    results = survive(SlurmJob.results, Uncompleted)
    queued.clear()
    first, second, third, fourth = (results(SlurmJob(i, outcome))[0] for i, outcome in enumerate(outcomes))
    assert [first.return_value, second.return_value, third.return_value] == [None, 0.5, None]
    with pytest.raises(KeyError):
        _ = fourth.return_value  # Hydra shows where
    assert queued == {"7"}
    queued.clear()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedsim")]
    assert lines == [
        f"fedsim: job {i} has ended without a result (TIMEOUT); it printed sweep/.submitit/7_{i}/7_{i}_0_log.err"
        for i in (0, 2)
    ]


def test_a_job_that_slurm_begins_again_continues(fedsim, tmp_path, monkeypatch):
    """With the same command, in the same folder: a sweep's job from its checkpoint, and likewise a single run."""
    whole = fedsim(*SWEEP, "seed=1,2", "hydra.sweep.dir=whole")
    assert whole.code == 0, whole.err
    for arguments in (SWEEP, SWEEP[1:]):
        folder, seeds = ("sweep", "seed=1,2") if "-m" in arguments else ("single", "seed=1")
        place = f"hydra.{'sweep' if '-m' in arguments else 'run'}.dir={folder}"
        begun = fedsim(*arguments, seeds, place, "server.num_rounds=2")
        assert begun.code == 0, begun.err
        monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
        refused = fedsim(*arguments, seeds, place)
        assert "already holds a run" in refused.err
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        again = fedsim(*arguments, seeds, place)
        assert again.code == 0, again.err
        monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert models(tmp_path / "sweep") == models(tmp_path / "whole")
    rows = (tmp_path / "single" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [1, 2, 3]
    assert (tmp_path / "single" / "model.safetensors").read_bytes() == models(tmp_path / "whole")["0"]


@pytest.mark.slow
def test_optuna_searches_for_the_best_accuracy(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install '.[sweep]'")
    space = "local.learning_rate=tag(log,interval(0.001,0.1))"
    done = run_in_process(tmp_path, *SWEEP, "+sweep=optuna", space, "hydra.sweeper.n_trials=3", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    best = {job: summary(tmp_path / "sweep" / job)["best"]["test_accuracy"] for job in ("0", "1", "2")}
    results = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert f"best_value: {max(best.values())}" in results
