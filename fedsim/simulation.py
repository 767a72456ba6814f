"""A run put together from plain objects, for a notebook and for the command line alike.

simulation = Simulation(dataset, leaf_cnn, local=LocalConfig(learning_rate=0.06))
for metrics in simulation.rounds():
    print(metrics["round"], metrics["train_loss"])
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fedsim.algorithms import Algorithm, fedavg
from fedsim.checkpoint import Checkpoint
from fedsim.config import CheckpointConfig, EvaluateConfig, LocalConfig, ServerConfig, TrackingConfig
from fedsim.data.federated import FederatedDataset
from fedsim.evaluate import Evaluator, spread
from fedsim.pooling import pool_in_pairs
from fedsim.rng import torch_stream
from fedsim.sampling import Sampler, uniform
from fedsim.server import Metrics, Server
from fedsim.tracking.progress import Progress
from fedsim.tracking.run_directory import RunDirectory, read_metrics
from fedsim.tracking.sinks import Run, SinkFactory, Sinks
from fedsim.tracking.summary import summarise, versions
from fedsim.train.serial import SerialTrainer
from fedsim.transport.inprocess import InProcess, Trainer
from fedsim.vector import FlatModel

ModelFactory = Callable[[tuple[int, ...], int], nn.Module]
"""(input shape without the batch, number of classes) -> module."""


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but PyTorch sees no GPU here; use device=auto or device=cpu")
    return torch.device(name)


class Simulation:
    """A federated run.

    Args:
        dataset: samples and their owners; a partition must have been applied.
        model: a factory, called as model(input_shape, num_classes) under the run's seed, or a module, which is
            taken over (its parameters become views into the shared vector).
        algorithm: None is FedAvg.
        local: what a client does.
        server: rounds, cohort size, how often to evaluate.
        evaluate: what is evaluated.
        sampler: sampler(num_clients, clients_per_round) -> who trains in a round.
        trainer: trainer(dataset, model, algorithm, local, seed=...) -> the trainer.
        seed: of everything that is drawn.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: no clients; settings that do not fit each other.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        model: nn.Module | ModelFactory,
        *,
        algorithm: Algorithm | None = None,
        local: LocalConfig = LocalConfig(),  # noqa: B008 (frozen)
        server: ServerConfig = ServerConfig(),  # noqa: B008
        evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008
        sampler: Callable[[int, int | float], Sampler] = uniform,
        trainer: Callable[..., Trainer] = SerialTrainer,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if dataset.num_clients == 0:
            raise ValueError(f"data={dataset.name} has no clients yet; apply a partition first")
        where = choose_device(device)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(where)
        else:
            # Numbers below 1e-38 become zero: they change no result, and a product with one takes 100 times as long.
            torch.set_flush_denormal(True)
        algorithm = algorithm or fedavg()
        self.dataset, self.config, self.seed = dataset, server, seed
        module = _initialise(model, dataset, seed)
        self.model = FlatModel(pool_in_pairs(module) if where.type == "cpu" else module, where)
        self.trainer = trainer(dataset, self.model, algorithm, local, seed=seed)
        self.server = Server(
            self.model.vector.clone(),
            self.model.num_parameters,
            dataset.train.sizes,
            algorithm=algorithm,
            sampler=sampler(dataset.num_clients, server.clients_per_round),
            transport=InProcess(self.trainer, dataset.train, local, seed=seed),
            seed=seed,
        )
        self.central = (
            None
            if dataset.test is None or not dataset.test.num_samples
            else Evaluator(dataset, dataset.test, self.model)
        )
        self.preview = None if self.central is None else self.central.draw(evaluate.max_samples, seed)
        # (round, split, losses, hits) of the last evaluation on whole splits
        self._evaluated: tuple[int, Evaluator, Any, Any] | None = None
        if self.central is None and server.stops_early:
            raise ValueError(f"server.stop_at_accuracy and server.patience need a test set; {dataset.name} has none")
        self.accuracies: list[float] = []  # of the evaluations so far: what the stop rule reads
        self.stopped: str | None = None  # what ended the run, if not its number of rounds

    def rounds(self) -> Iterator[Metrics]:
        """Run to the last round, or until the stop rule ends it, yielding each round's metrics."""
        self.stopped = self.config.stop(self.accuracies)
        if self.stopped is None:
            for metrics in self.server.rounds(self.config, self._look):
                yield metrics
                if self.stopped is not None:
                    break

    def _look(self, last: bool) -> Metrics:
        """An evaluation that is due. One that would end the run is repeated on all samples: what holds there counts."""
        metrics = self.evaluate(whole=last)
        if self.config.stops_early:
            if not last and self.config.stop([*self.accuracies, metrics["test_accuracy"]]):
                metrics = self.evaluate()
            self.accuracies.append(metrics["test_accuracy"])
            self.stopped = self.config.stop(self.accuracies)
        return metrics

    def evaluate(self, *, whole: bool = True) -> Metrics:
        """test_loss and test_accuracy of the global model; {} without a test set.

        Args:
            whole: all test samples, else those of `evaluate.max_samples`.
        """
        if self.central is None:
            return {}
        losses, hits = self.central.per_sample(self.server.vector, None if whole else self.preview)
        if whole:
            self._evaluated = (self.server.round, self.central, losses, hits)
        return {"test_loss": math.fsum(losses) / len(losses), "test_accuracy": math.fsum(hits) / len(hits)}

    def clients(self) -> pd.DataFrame:
        """The global model on every client: client, split, samples, loss, accuracy.

        The split is the clients' test samples, else their validation samples, else their training samples.
        """
        for name in ("test", "validation", "train"):
            split = getattr(self.dataset, name)
            if split is not None and split.owned and split.num_samples:
                break
        else:
            raise AssertionError("a partitioned dataset has owners")
        evaluated = self._evaluated
        if evaluated is None or evaluated[0] != self.server.round or evaluated[1].split is not split:
            evaluator = Evaluator(self.dataset, split, self.model)
            evaluated = (self.server.round, evaluator, *evaluator.per_sample(self.server.vector))
        frame = evaluated[1].per_client(*evaluated[2:])
        frame.insert(1, "split", name)
        return frame

    def checkpoint(self, config: dict[str, Any]) -> Checkpoint:
        """The state after the last finished round."""
        server = self.server
        return Checkpoint(
            round=server.round,
            vector=server.vector,
            state=server.state,
            config=config,
            dataset=self.dataset.fingerprint(),
        )

    def restore(self, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: it is of another run.
        """
        checkpoint.check(config, self.dataset.fingerprint())
        self.server.vector.copy_(checkpoint.vector)
        self.server.state = checkpoint.state
        self.server.round = checkpoint.round


def _initialise(model: nn.Module | ModelFactory, dataset: FederatedDataset, seed: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream(seed, "initialise").initial_seed())
        return model(dataset.input_shape, dataset.num_classes)


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
        config: resolved configuration as plain values, for config.yaml and the checkpoint.
        evaluate, tracking, checkpoint: settings.
        about: more for summary.json; its "name" is the run's for the sinks.
        sinks: trackers beside the files, by name.

    Returns:
        The content of summary.json.
    """
    with Sinks(sinks or {}, simulation.model.device) as tracked:
        return _record(simulation, directory, config, evaluate, tracking, checkpoint, about, tracked)


def _record(
    simulation: Simulation,
    directory: Path,
    config: dict[str, Any] | None,
    evaluate: EvaluateConfig,
    tracking: TrackingConfig,
    checkpoint: CheckpointConfig,
    about: dict[str, Any] | None,
    tracked: Sinks,
) -> dict[str, Any]:
    config = config or {}
    server, num_rounds = simulation.server, simulation.config.num_rounds
    if checkpoint.resume is not None:
        device = str(server.vector.device)
        simulation.restore(Checkpoint.load(directory, device), config)
    files = RunDirectory(directory, keep_rounds=server.round)
    simulation.accuracies = [row["test_accuracy"] for row in files.rows if "test_accuracy" in row]
    name, clients = (about or {}).get("name", simulation.dataset.name), simulation.dataset.frame()
    tracked.open(Run(name=name, directory=directory, config=config, clients=clients, done=server.round))
    if config:
        files.write_config(config)
    saved = server.round
    shown = False if tracking.quiet else tracking.progress
    with Progress(num_rounds, done=server.round, enabled=shown) as progress:
        try:
            for metrics in simulation.rounds():
                files.log(metrics)
                progress.log(metrics)
                tracked.log(metrics)
                if checkpoint.due(server.round, server.round if simulation.stopped else num_rounds):
                    files.sync()
                    simulation.checkpoint(config).save(directory)
                    saved = server.round
        except KeyboardInterrupt:
            logged = files.rows[-1]["round"] if files.rows else 0
            if checkpoint.every and server.round > saved and server.round == logged:
                files.sync()
                simulation.checkpoint(config).save(directory)
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
        "versions": versions(server.vector.device),
    }
    if evaluate.clients:
        clients = simulation.clients()
        files.write_clients(clients)
        tracked.clients(clients)
        summary["clients"] = {"split": clients["split"].iloc[0], **spread(clients)}
    files.write_model(simulation.model.state_dict(server.vector))
    files.write_summary(summary)
    tracked.finish(summary, files.outcome())
    return summary


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
