"""The command line: composes the configuration, builds plain objects from it, and runs. Only this file and `compose`
see a DictConfig. Whatever a user can get wrong ends in one line and exit code 1; torch is imported only to run."""

import importlib
import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedsim import flags, sweep
from fedsim.choices import keep_own_options
from fedsim.compose import conf_dir, plain_values, schema, validated
from fedsim.config import Config
from fedsim.explain import explain, where
from fedsim.files import CHECKPOINT, holds_run, in_use
from fedsim.score import score
from fedsim.signals import ends_at_a_signal, exit_code

log = logging.getLogger("fedsim")

MISTAKES = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError)
_mistakes: list[str] = []  # of the jobs of this process: what the exit code tells
_places: list[Path] = []  # where this process runs or ran, for whoever interrupts it


def main() -> None:
    """`python -m fedsim`: run what the arguments describe."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path:  # as python -m does, for the command fedsim
        sys.path.insert(0, os.getcwd())
    run_job(_job)


def run_job(job: Callable[[DictConfig], object]) -> None:
    """Compose the configuration that the arguments describe and give it to `job`; a mistake becomes one line."""
    # what the user has asked for, and not what the command that has started this one has set
    os.environ.setdefault("FEDSIM_TRACE", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the error becomes one line below
    for seen in (_mistakes, _places, sweep.unfinished):
        seen.clear()
    if {"--help", "-h"} & set(sys.argv):
        flags.list_groups_at_once()
    Hydra.get_sanitized_cfg = _show_what_is_used  # pyright: ignore[reportAttributeAccessIssue]
    try:
        flags.refuse_unknown()
        flags.stand_last()
        with ends_at_a_signal():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except KeyboardInterrupt as stop:
        saved = next((place for place in _places[-1:] if next(place.rglob(CHECKPOINT), None)), None)
        next_step = "no checkpoint was written" if saved is None else f"continue with checkpoint.resume={saved}"
        if sweep.queued:
            jobs = " ".join(sorted(sweep.queued))
            next_step = f"its jobs go on in Slurm's queue: scancel {jobs} ends them, before checkpoint.resume continues"
        print(f"fedsim: stopped; {next_step}", file=sys.stderr)
        sys.exit(exit_code(stop))
    except BrokenPipeError:  # the reader of a pipe has gone, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MISTAKES as error:
        if _debugging():
            raise
        _tell(error)
    if _mistakes or sweep.unfinished:
        sys.exit(1)


_sanitized = Hydra.get_sanitized_cfg


def _show_what_is_used(hydra_app: Any, cfg: DictConfig, cfg_type: str) -> DictConfig:
    """For --cfg Hydra shows what it has composed: leave out of it what the run would not be given either."""
    if cfg_type != "hydra":
        keep_own_options(cfg, lambda line: print(line, file=sys.stderr))
    return _sanitized(hydra_app, cfg, cfg_type)


def _debugging() -> bool:
    return os.environ.get("FEDSIM_TRACE") == "1"


def _tell(error: BaseException) -> None:
    _mistakes.append(explain(error, conf_dir()) + where(error))
    _write(logging.ERROR, _mistakes[-1])  # a launcher's jobs may print where nobody looks
    print(f"fedsim: error: {_mistakes[-1]}", file=sys.stderr)


def _job(cfg: DictConfig) -> float | None:
    """One run, or one node of it; returns the score of its best model (`fedsim.score`), for sweepers, or None after a
    mistake, which is told at once.

    Were it raised, Hydra would put a line of its own before ours, and a sweep would tell of it only at its end.
    """
    try:
        return _run(cfg)
    except MISTAKES as error:
        if _debugging():
            raise
        _tell(error)
    except (MemoryError, RuntimeError) as error:
        if _debugging() or not importlib.import_module("fedsim.memory").out_of_memory(error):
            raise
        what = next(iter(str(error).splitlines()), type(error).__name__)
        less = "a smaller model or local.batch_size, fewer local steps, or fewer trainer.num_slots need less"
        _tell(ValueError(f"out of memory ({what}): {less}"))
    return None


def _note(text: str) -> None:
    """A warning of what the jobs of a sweep have in common: each one's run.log has it, the terminal once."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN or sweep.first(Path(hydra_config.sweep.dir), text):
        log.warning(text)
        return
    _write(logging.WARNING, text)


def _write(level: int, text: str) -> None:
    """A line for run.log alone."""
    record = log.makeRecord(log.name, level, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _run(cfg: DictConfig) -> float | None:
    keep_own_options(cfg, _note)
    if cfg.role != "local" or cfg.transport.name == "torch_distributed":
        # peers that go are told of in one line of our own; torch reads this when it is imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    config = validated(cfg)
    plain = plain_values(cfg)
    place_module = importlib.import_module("fedsim.transport.place")
    job = HydraConfig.get().job.num if HydraConfig.get().mode == RunMode.MULTIRUN else 0
    place = place_module.find_place(config.role, config.transport, silo="num_processes" in config.trainer, job=job)
    if place.role in ("worker", "scheduler", "member"):
        _node(config, plain, place)
        return None
    directory = Path(HydraConfig.get().runtime.output_dir)
    with in_use(directory):
        return _simulate(config, plain, place, directory)


def _simulate(config: Config, plain: dict[str, Any], place: Any, directory: Path) -> float | None:
    from hydra.utils import instantiate

    checkpoint = importlib.import_module("fedsim.checkpoint")
    assemble = importlib.import_module("fedsim.assemble")
    recording = importlib.import_module("fedsim.recording")
    summary_module = importlib.import_module("fedsim.tracking.summary")
    comparable = checkpoint.comparable(plain)
    saving, sweeping = config.checkpoint, HydraConfig.get().mode == RunMode.MULTIRUN
    _places.append(Path(HydraConfig.get().sweep.dir) if sweeping else directory)
    again = saving.resume is None and sweep.requeued()
    if saving.resume is None and holds_run(directory) and not again:
        raise ValueError(
            f"{directory} already holds a run; give another hydra.{'sweep' if sweeping else 'run'}.dir, "
            f"or checkpoint.resume={_places[-1]}"
        )
    if again or (saving.resume is not None and sweeping):
        saving = sweep.job_checkpoint(directory, saving, comparable)
        if (done := sweep.finished(directory, config.server)) is not None:
            log.info(f"{directory} has finished before")
            return score(done.get("best", {}))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            continue
        if config.tracking.quiet:
            handler.setLevel(logging.WARNING)
        if config.tracking.progress is False:
            handler.setFormatter(logging.Formatter())  # plain, also in a terminal

    config = replace(config, checkpoint=saving)
    if importlib.import_module("fedsim.data.remote").is_remote(plain["data"]):
        simulation = importlib.import_module("fedsim.deploy").build_server(config, plain, place)
    else:
        simulation = assemble.build_simulation(config, plain, place, directory, _note)
    try:
        dataset = simulation.dataset
        log.info(
            f"{config.name}: {dataset.name} ({dataset.source}), {dataset.num_clients:,} clients with "
            f"{dataset.train.num_samples:,} samples; {simulation.model.num_parameters:,} parameters; "
            f"{_trainer_name(simulation)} trainer on {simulation.model.device}; writing to {_near(directory)}"
        )
        if simulation.choice is not None:
            log.info(f"trainer=auto chose {simulation.choice}")
            for row in simulation.choice.table:
                threads = f"{row['num_threads']} thread{'s' * (row['num_threads'] != 1)}"
                cost = f"{row['round_seconds']:.3g} s and {row['round_mib']:,.0f} MiB a round"
                log.info(f"  {row['trainer']}, {threads}: {cost}")
        summary = recording.record_into(
            simulation,
            directory,
            config=plain,
            evaluate=config.evaluate,
            tracking=config.tracking,
            checkpoint=saving,
            about={"name": config.name, "config_hash": summary_module.config_hash(comparable)},
            sinks={name: instantiate(sink) for name, sink in config.tracking.sinks.items()},
        )
    finally:
        simulation.close()
    closing = importlib.import_module("fedsim.tracking.closing")
    rounds = f"{summary['rounds']:,} round{'s' * (summary['rounds'] != 1)}"
    why = {"target": ", the target reached", "patience": ", no better for long"}.get(summary["stopped"], "")
    facts = closing.outcome(summary)
    if not sweeping:
        facts |= {"files": str(_near(directory)), "report": f"python -m fedsim.report {_near(directory)}"}
    terminal = importlib.import_module("fedsim.tracking.terminal")
    title = f"{config.name} has ended after {rounds}{why}"
    log.info(terminal.Facts(title, facts, whole=("files", "report")))
    return score(summary.get("best", {}))


def _node(config: Config, plain: dict[str, Any], place: Any) -> None:
    """Be a worker, a scheduler or a process of a silo.

    Options of the command line that are not a node's own must agree with the server's; without such options it takes
    the server's configuration as it is.
    """
    launch = importlib.import_module("fedsim.transport.launch")
    launch.end_with_starter()
    assemble = importlib.import_module("fedsim.assemble")
    given = [re.sub(r"^[+~]*([^=@]*).*", r"\1", text) for text in HydraConfig.get().overrides.task]
    chosen = [key for key in given if any(key == own or key.startswith(own + ".") for own in assemble.NODE_KEYS)]
    stated = [key for key in given if key not in chosen]
    of_data = [key for key in stated if key.split(".")[0] in ("data", "partition")]
    claims = assemble.claims_of(plain) if stated else None
    if claims is not None and of_data == stated:  # of the rest it takes what the server has
        claims = {key: value for key, value in claims.items() if key.split(".")[0] in ("data", "partition")}
    is_remote = importlib.import_module("fedsim.data.remote").is_remote

    def resolve(theirs: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
        mine = {key: plain[key] for key in ("device", "transport", "role", "deployment")}
        if any(key.startswith("trainer") for key in chosen):
            mine["trainer"] = plain["trainer"]
        if is_remote(theirs["data"]):
            if not of_data:
                raise ValueError(
                    "the server has no data (data=remote): give this worker its own, for example data=folders "
                    "data.root=FOLDER"
                )
            mine |= {key: plain[key] for key in ("data", "partition")}
        for key in ("root", "cache_dir", "download"):
            if f"data.{key}" in chosen and "partition" not in mine:
                mine["data"] = {**mine.get("data", theirs["data"]), key: plain["data"][key]}
        cfg = OmegaConf.merge(schema(), {**theirs, **mine})
        assert isinstance(cfg, DictConfig)
        return validated(cfg), plain_values(cfg)

    name = config.transport.node or place.name or f"{socket.gethostname()}-{os.getpid()}"
    note: Callable[[str], None] = log.warning
    if config.role == "local":  # one command has started all nodes: the server notes, and writes to run.log, for all
        note = log.debug
        for handler in [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]:
            logging.getLogger().removeHandler(handler)
    try:
        if place.role == "member":
            silos = importlib.import_module("fedsim.silos")
            silos.follow_silo(config, place, resolve, lambda theirs: assemble.build_training_data(theirs, note))
            return
        directory = Path(HydraConfig.get().runtime.output_dir)
        own_data = importlib.import_module("fedsim.deploy").build_worker
        node = importlib.import_module("fedsim.node")
        node.run_node(config, claims, place, name, resolve, note, directory, own_data)
    except KeyboardInterrupt as stop:
        print(f"fedsim: {name} stopped", file=sys.stderr)
        sys.exit(exit_code(stop))


def _trainer_name(simulation: Any) -> str:
    return type(simulation.trainer).__name__.removesuffix("Trainer").lower()


def _near(path: Path) -> Path:
    """As it is typed from here, if it lies below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
