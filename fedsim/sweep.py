"""Sweeps: which jobs are finished, which go on, and what is said when all have ended.

A sweep is a folder with a run directory for each job, numbered as Hydra numbers them. With `checkpoint.resume=FOLDER`
the same command goes on there: a job that has finished is not run again, one that was interrupted continues from its
checkpoint, and one that never began begins.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedsim.config import CheckpointConfig, ServerConfig
from fedsim.files import CHECKPOINT, holds_run
from fedsim.score import scores
from fedsim.tracking.readback import read_metrics
from fedsim.tracking.terminal import drawn

_TOLD = ".told"  # in a sweep's folder: a mark for each line that all jobs would tell

unfinished: list[str] = []
"""Jobs of the last sweep that left no summary.json: what the exit code of the command tells."""

queued: set[str] = set()
"""Numbers of Slurm's jobs that this process waits for."""


def job_checkpoint(directory: Path, checkpoint: CheckpointConfig, comparable: dict[str, Any]) -> CheckpointConfig:
    """The settings for one job of a sweep that continues: from its own checkpoint where it has one, else anew.

    Raises:
        ValueError: the directory holds another run, as when the sweep's values have changed their order.
    """
    if not holds_run(directory):
        return replace(checkpoint, resume=None)
    theirs = _recorded(directory)
    differing = sorted(key for key in comparable.keys() | theirs.keys() if comparable.get(key) != theirs.get(key))
    if theirs and differing:
        raise ValueError(
            f"{directory} holds another run of the sweep; it differs in {', '.join(differing)}: "
            "give the sweep's values in the order they had"
        )
    return replace(checkpoint, resume=str(directory) if (directory / CHECKPOINT).exists() else None)


def finished(directory: Path, server: ServerConfig) -> dict[str, Any] | None:
    """summary.json of a job that is as long as `server` asks for, or ends early; None: something is missing."""
    file = directory / "summary.json"
    if not file.exists():
        return None
    summary = json.loads(file.read_text(encoding="utf-8"))
    early = server.stop(scores(read_metrics(directory))) is not None
    return summary if early or summary["rounds"] >= server.num_rounds else None


def requeued() -> bool:
    """Whether Slurm has begun this job before: after a preemption, the death of its node, or the end of its time."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def first(folder: Path, text: str) -> bool:
    """Whether no other job of the sweep in `folder`, in whatever process, has asked this of `text` before."""
    mark = folder / _TOLD / hashlib.sha256(text.encode()).hexdigest()[:16]
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _recorded(directory: Path) -> dict[str, Any]:
    from fedsim.checkpoint import comparable

    file = directory / "config.yaml"
    return comparable(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _mistake(job: Path) -> str | None:
    """The mistake that a job of the sweep has told, wherever it printed it."""
    file = job / "run.log"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(" ERROR ")[2] for line in reversed(lines) if " ERROR " in line), None)


def survive(results: Callable[[Any], list[JobReturn]], errors: type[Exception]) -> Callable[[Any], list[JobReturn]]:
    """submitit's Job.results, which waits for a job and raises one of `errors` where it left no result: it was killed
    or cancelled, or its time has ended.

    Hydra would wait for no other job then, and show a traceback. Instead the job counts as one without a value, is told
    of in a line, and the others are waited for.
    """

    def survived(job: Any) -> list[JobReturn]:
        if type(job).__name__ == "SlurmJob":
            queued.add(str(job.job_id).partition("_")[0])
        try:
            returned = results(job)
            end = returned[0]._return_value if returned[0].status == JobStatus.FAILED else None
            if not isinstance(end, errors):
                return returned
        except errors:
            pass
        number, printed = job.submission().args[2], job.paths.stderr
        print(f"fedsim: job {number} has ended without a result ({job.state}); it printed {printed}", file=sys.stderr)
        return [JobReturn(status=JobStatus.COMPLETED)]

    return survived


class SweepEnd(Callback):
    """Hydra calls it around the jobs: says at the end how many have finished, and what to do next."""

    elsewhere = False  # whether the jobs print where nobody sees it

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        queued.clear()
        self.elsewhere = "submitit" in config.hydra.launcher._target_
        if self.elsewhere:
            jobs = importlib.import_module("submitit.core.core").Job
            if jobs.results.__module__ != __name__:
                jobs.results = survive(jobs.results, importlib.import_module("submitit.core.utils").UncompletedJobError)
        with contextlib.suppress(OmegaConfBaseException):  # of a folder that is not there; told when it is used
            shutil.rmtree(Path(config.hydra.sweep.dir) / _TOLD, ignore_errors=True)  # a sweep that goes on tells again

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hydra keeps what each job has returned until the last one has ended, with the job's whole configuration and
        its own: megabytes a job, of which no sweeper reads anything but the value."""
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        queued.clear()
        folder = Path(config.hydra.sweep.dir)
        shutil.rmtree(folder / _TOLD, ignore_errors=True)
        jobs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        done = [job for job in jobs if next(job.rglob("summary.json"), None)]
        unfinished[:] = [job.name for job in jobs if job not in done]
        if not config.tracking.quiet:
            if done:
                text = importlib.import_module("fedsim.report.text")  # brings pandas, which no other command needs
                plain = config.tracking.progress is False
                table = text.jobs(done)
                print(f"\n{table if plain else drawn(table, sys.stderr)}", file=sys.stderr)
            print(f"{len(done)} of {len(jobs)} runs finished; python -m fedsim.report {folder}", file=sys.stderr)
        for job in unfinished if self.elsewhere else []:
            if (mistake := _mistake(folder / job)) is not None:
                print(f"fedsim: error: job {job}: {mistake}", file=sys.stderr)
        if unfinished:
            missing = ", ".join(unfinished[:10]) + (" and others" if len(unfinished) > 10 else "")
            again = f"the same command with checkpoint.resume={folder} runs only these"
            print(f"not finished: {missing}; {again}", file=sys.stderr)
