"""A run whose files stay: metrics, configuration, checkpoints, model and summary, in one directory."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fedsim.async_server import AsyncServer
from fedsim.checkpoint import Checkpoint
from fedsim.clock import clients_asked
from fedsim.config import CheckpointConfig, EvaluateConfig, TrackingConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.outline import outline
from fedsim.evaluate import spread
from fedsim.files import holds_run, in_use
from fedsim.initial_model import ModelFactory
from fedsim.sampling import cohort_size
from fedsim.score import scores
from fedsim.simulation import Simulation
from fedsim.tracking.progress import Progress
from fedsim.tracking.readback import read_metrics, read_trainer
from fedsim.tracking.run_directory import RunDirectory
from fedsim.tracking.sinks import Run, SinkFactory, Sinks
from fedsim.tracking.summary import summarise, versions
from fedsim.train.choice import Choice

log = logging.getLogger("fedsim")


def record(
    simulation: Simulation,
    directory: Path,
    *,
    config: dict[str, Any] | None = None,
    evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    tracking: TrackingConfig = TrackingConfig(),  # noqa: B008
    checkpoint: CheckpointConfig = CheckpointConfig(),  # noqa: B008
    about: dict[str, Any] | None = None,
    sinks: Mapping[str, SinkFactory] | None = None,
) -> dict[str, Any]:
    """Run a simulation to its end and leave its files in `directory`.

    Args:
        simulation: the run.
        directory: the run directory; with `checkpoint.resume` the one to continue.
        config: resolved configuration as plain values, for config.yaml and the checkpoint; None: what the simulation
            says of itself (`Simulation.settings`).
        evaluate, tracking, checkpoint: settings.
        about: more for summary.json; its "name" is the run's for the sinks.
        sinks: trackers beside the files, by name.

    Returns:
        The content of summary.json.

    Raises:
        ValueError: the directory holds a run, or one is at work in it; what is to be resumed is another run or lies
            elsewhere; a client's loss or update is not finite.
    """
    directory = Path(directory)
    if checkpoint.resume is None and holds_run(directory):
        raise ValueError(
            f"{directory} already holds a run; give another directory, or "
            f"checkpoint=CheckpointConfig(resume={str(directory)!r}) to continue it"
        )
    with in_use(directory):
        return record_into(
            simulation,
            directory,
            config=config,
            evaluate=evaluate,
            tracking=tracking,
            checkpoint=checkpoint,
            about=about,
            sinks=sinks,
        )


def record_into(
    simulation: Simulation,
    directory: Path,
    *,
    config: dict[str, Any] | None = None,
    evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    tracking: TrackingConfig = TrackingConfig(),  # noqa: B008
    checkpoint: CheckpointConfig = CheckpointConfig(),  # noqa: B008
    about: dict[str, Any] | None = None,
    sinks: Mapping[str, SinkFactory] | None = None,
) -> dict[str, Any]:
    """`record` for a caller who has the directory for itself, and whose new run may take the place of one in it."""
    if checkpoint.resume is not None and Path(checkpoint.resume).resolve() != directory.resolve():
        raise ValueError(
            f"checkpoint.resume={checkpoint.resume}: a run goes on where it lies, and the run directory is "
            f"{directory}: leave hydra.run.dir out, or copy the run there first"
        )
    with Sinks(sinks or {}, simulation.model.device) as tracked:
        config = config or simulation.settings
        return _record(simulation, directory, config, evaluate, tracking, checkpoint, about, tracked)


def _record(
    simulation: Simulation,
    directory: Path,
    config: dict[str, Any],
    evaluate: EvaluateConfig,
    tracking: TrackingConfig,
    checkpoint: CheckpointConfig,
    about: dict[str, Any] | None,
    tracked: Sinks,
) -> dict[str, Any]:
    if checkpoint.resume is not None and (begun := read_trainer(directory)) is not None:
        # before anything else: another trainer has client vectors of its own
        simulation.use(Choice(**begun, reason="as begun"))
    server, num_rounds = simulation.server, simulation.config.num_rounds
    states = simulation.client_states
    for state in states.values():
        if checkpoint.every or checkpoint.resume is not None:
            state.locate(directory / "client_state")
    if checkpoint.resume is not None:
        device = str(server.vector.device)
        simulation.restore(Checkpoint.load(directory, device), config)
    for name, state in states.items():  # now that it is known what lies on the disk
        state.require_room(_expected_rows(simulation, name))
    needed = simulation.footprint()
    log.info(f"a round is predicted to peak at {needed}")
    files = RunDirectory(directory, keep_rounds=server.round)
    if simulation.choice is not None:
        files.write_trainer(simulation.choice.facts)
    simulation.run_state.scores = scores(files.rows)
    name, clients = (about or {}).get("name", simulation.dataset.name), simulation.dataset.frame()
    tracked.open(Run(name=name, directory=directory, config=config, clients=clients, done=server.round))
    if server.round < num_rounds and simulation.config.stop(simulation.run_state.scores) is None:
        files.forget_outcome()
    files.write_config(config)
    files.write_partition(outline(simulation.dataset))
    saved = server.round
    shown = False if tracking.quiet else tracking.progress
    with Progress(num_rounds, done=server.round, enabled=shown) as progress:
        try:
            for metrics in simulation.rounds():
                if isinstance(server, AsyncServer):
                    files.log_arrivals(server.arrived)
                files.log(metrics)
                progress.log(metrics)
                tracked.log(metrics)
                if checkpoint.due(server.round, server.round if simulation.stopped else num_rounds):
                    files.sync()
                    simulation.save(directory, config)
                    saved = server.round
        except KeyboardInterrupt:
            # What is saved must be of one round: its row is written, and nothing of the next one has moved.
            logged = files.rows[-1]["round"] if files.rows else 0
            for state in states.values():
                state.rollback()
            if checkpoint.every and not server.moving and server.round > saved and server.round == logged:
                files.sync()
                simulation.save(directory, config)
            raise
    summary = {
        **(about or {}),
        **summarise(files.rows),
        "stopped": simulation.stopped,
        "num_clients": simulation.dataset.num_clients,
        "num_parameters": simulation.model.num_parameters,
        "model_bytes": simulation.model.vector.nbytes,
        "data": simulation.dataset.name,
        "data_source": simulation.dataset.source,
        "notes": list(simulation.dataset.notes),
        "seed": simulation.seed,
        "device": str(server.vector.device),
        "trainer": type(simulation.trainer).__name__,
        "num_slots": simulation.trainer.num_slots,
        "num_threads": torch.get_num_threads(),
        "predicted_peak_bytes": needed.peak,
        "trainer_choice": None if simulation.choice is None else asdict(simulation.choice),
        "versions": versions(server.vector.device),
    }
    if simulation.uplink is not None:
        summary |= simulation.uplink.summary(server.round)
    if states:
        summary["client_state"] = {
            name: {"clients": len(state), "row_bytes": state.row_bytes, "file_bytes": state.file_bytes}
            for name, state in states.items()
        }
    if evaluate.clients and simulation.examiner.sees_clients:
        clients = simulation.clients()
        files.write_clients(clients)
        tracked.clients(clients)
        summary["clients"] = {"split": clients["split"].iloc[0], "evaluated": len(clients), **spread(clients)}
    files.write_model(simulation.model.state_dict(server.vector))
    files.write_summary(summary)
    tracked.finish(summary, files.outcome())
    return summary


def _expected_rows(simulation: Simulation, name: str) -> int:
    """How many rows of a client state a whole run will write, by expectation, with a uniform sampler."""
    num_clients = simulation.dataset.num_clients
    asked = cohort_size(clients_asked(simulation.config, num_clients), num_clients)
    if name == "versions":
        return asked
    return math.ceil(num_clients * (1 - (1 - asked / num_clients) ** simulation.config.num_rounds))


def simulate(
    dataset: FederatedDataset,
    model: nn.Module | ModelFactory,
    *,
    run_dir: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Run to the end in one call.

    Args:
        dataset, model, settings: as for `Simulation`.
        run_dir: where to leave the run's files; None leaves none.
        progress: the progress bar; None: only in a terminal.

    Returns:
        One row a round, with the columns of metrics.csv.
    """
    simulation = Simulation(dataset, model, **settings)
    if run_dir is not None:
        record(simulation, Path(run_dir), tracking=TrackingConfig(progress=progress))
        return pd.DataFrame(read_metrics(Path(run_dir)))
    rows = []
    with Progress(simulation.config.num_rounds, enabled=progress) as bar:
        for metrics in simulation.rounds():
            bar.log(metrics)
            rows.append(metrics)
    return pd.DataFrame(rows)
