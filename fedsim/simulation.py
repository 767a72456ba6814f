"""A run put together from plain objects, for a notebook and for the command line alike.

simulation = Simulation(dataset, leaf_cnn, local=LocalConfig(learning_rate=0.06))
for metrics in simulation.rounds():
    print(metrics["round"], metrics["train_loss"])
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fedsim.algorithms import Algorithm, fedavg
from fedsim.algorithms.base import update_size
from fedsim.algorithms.traffic import traffic
from fedsim.async_server import AsyncServer
from fedsim.attacks import Attack
from fedsim.checkpoint import Checkpoint
from fedsim.client_state import ClientVectors
from fedsim.clock import clients_asked, make_clock
from fedsim.config import CheckpointConfig, ClientStateConfig, EvaluateConfig, LocalConfig, ServerConfig, TrackingConfig
from fedsim.data.federated import FederatedDataset
from fedsim.devices import Devices
from fedsim.evaluate import Evaluator, spread
from fedsim.events import make_queue
from fedsim.memory import free_memory_bytes
from fedsim.pooling import pool_in_pairs
from fedsim.rng import torch_stream
from fedsim.robust import Aggregator, mean
from fedsim.sampling import Population, Sampler, cohort_size, uniform
from fedsim.server import Metrics, Server, rounds
from fedsim.tracking.progress import Progress
from fedsim.tracking.run_directory import RunDirectory, read_metrics, read_trainer
from fedsim.tracking.sinks import Run, SinkFactory, Sinks
from fedsim.tracking.summary import summarise, versions
from fedsim.train.base import Trainer
from fedsim.train.calibrate import Auto, Choice
from fedsim.train.footprint import Footprint, footprint, require
from fedsim.train.own import own_models
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import Transform
from fedsim.transport.base import Grouped, Transport
from fedsim.transport.inprocess import InProcess
from fedsim.uplink import Uplink
from fedsim.vector import FlatModel

log = logging.getLogger("fedsim")

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
        devices: devices(num_clients, client_ids, seed) -> the clients' devices; None: everybody reports at once.
        client_state: memory for the vectors that clients keep.
        sampler: sampler(population, clients_per_round) -> who trains in a round.
        trainer: trainer(dataset, model, algorithm, local, seed=...) -> the trainer, or `Auto`, which measures and
            chooses one, or a `Choice` that was made before; the latter two also set PyTorch's number of threads. With
            transforms, an attack or a robust aggregator the trainer is also given uplink=....
        aggregator: how updates become one; None is their mean.
        transforms: what happens to each update before, in order.
        attack: whose data or updates are bad; None: nobody's.
        transport: called with this simulation as soon as it can train here (`own`): where rounds run. None: here.
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
        client_state: ClientStateConfig = ClientStateConfig(),  # noqa: B008
        sampler: Callable[[Population, int | float], Sampler] = uniform,
        devices: Callable[[int, Sequence[str], int], Devices] | None = None,
        trainer: Callable[..., Trainer] | Auto | Choice = Auto(),  # noqa: B008 (frozen)
        aggregator: Aggregator | None = None,
        transforms: Sequence[Transform] = (),
        attack: Attack | None = None,
        transport: "Callable[[Simulation], Transport] | None" = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        algorithm, aggregator = algorithm or fedavg(), aggregator or mean()
        _check_transport(algorithm, server, elsewhere=transport is not None)
        if attack is not None and attack.poison is not None:
            dataset = attack.poison(dataset, attack.attackers(dataset.num_clients, seed))
        self.dataset, self.config, self.seed, self.algorithm, self.local = dataset, server, seed, algorithm, local
        self.model = build_model(dataset, model, seed=seed, device=device)
        population = Population(sizes=dataset.train.sizes, losses=self._losses)
        drawn = sampler(population, clients_asked(server, dataset.num_clients))
        self._training: Evaluator | None = None  # of `_losses`
        self.uplink: Uplink | None = None
        if aggregator != mean() or transforms or attack is not None:
            if algorithm.prelude is not None or algorithm.asynchronous is not None:
                raise ValueError(
                    f"algorithm={algorithm.name} does not send one message a round, for which transforms, attacks and "
                    "aggregators are made: choose another algorithm, or aggregator=mean without the others"
                )
            if transport is not None or server.group_rounds > 1:
                raise ValueError(
                    "transforms, attacks and aggregators other than the mean need every update, which neither other "
                    "processes nor groups send yet: use transport=inprocess and server.group_rounds=1"
                )
            self.uplink = Uplink(
                transforms=transforms,
                aggregator=aggregator,
                attack=attack,
                sampler=drawn,
                num_clients=dataset.num_clients,
                size=update_size(algorithm, self.model.layout),
                like=self.model.vector,
                seed=seed,
            )
        self.choice = trainer if isinstance(trainer, Choice) else None
        self._factory = SerialTrainer if isinstance(trainer, Auto | Choice) else trainer
        if self.choice is not None:
            torch.set_num_threads(self.choice.num_threads)
        self.own = InProcess(self._make_trainer(), dataset.train, local, seed=seed)
        made = None if devices is None else devices(dataset.num_clients, dataset.client_ids, seed)
        down, up = traffic(algorithm, self.model)
        begin = {"draw": lambda i: _draw(model, dataset, seed, i).to(self.model.device), "schedule": server.schedule}
        if algorithm.asynchronous is None:
            self.server = Server(
                self.model.vector.clone(),
                self.model.num_parameters,
                dataset.train.sizes,
                algorithm=algorithm,
                sampler=drawn,
                transport=self.own,
                seed=seed,
                clock=make_clock(made, dataset.train.sizes, local, server, download_bytes=down, upload_bytes=up),
                uplink=self.uplink,
                **begin,
            )
        else:
            if getattr(sampler, "func", sampler) is not uniform:
                raise ValueError(f"algorithm={algorithm.name} draws clients as places fall free: set sampler=uniform")
            self.server = AsyncServer(
                self.model.vector.clone(),
                self.model.num_parameters,
                dataset.train.sizes,
                algorithm=algorithm,
                queue=make_queue(
                    made, dataset.train.sizes, local, server, download_bytes=down, upload_bytes=up, seed=seed
                ),
                transport=self.own,
                **begin,
            )
        if isinstance(trainer, Auto):
            job = self.server.next_job()
            self.choice = trainer.choose(
                dataset,
                self.model,
                algorithm,
                local,
                cohort=job.cohort,
                broadcast=job.broadcast,
                scale=job.scale,
                num_rounds=server.num_rounds,
                whole=self.uplink is not None,
            )
            if self.choice.num_slots:
                self.own.trainer = self._make_trainer()
            torch.set_num_threads(self.choice.num_threads)
            self.model.load(self.server.vector)
        self._client_state = client_state
        self._limit()
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
        self._alone = transport is None
        self.transport: Transport = self.own if transport is None else transport(self)
        if server.group_rounds > 1:
            self.transport = Grouped(
                transport=self.transport, num_groups=server.num_groups, group_rounds=server.group_rounds
            )
        self.server.transport = self.transport

    def close(self) -> None:
        """End the processes that the transport has started; a run in one process has none."""
        self.transport.close()

    def footprint(self) -> Footprint:
        """The memory that a round will take, from two trial steps; they leave no trace in the run."""
        job, trainer = self.server.next_job(), self.trainer
        if trainer.clients is not None or self.uplink is not None:  # which a trial would change
            trainer = self._make_trial()
        needed = footprint(trainer, self.dataset.train, job.cohort, self.local, job.broadcast, job.scale)
        self.model.load(self.server.vector)
        require(needed, free_memory_bytes(self.model.device), self.local)
        return needed

    @property
    def trainer(self) -> Trainer:
        """Trains in this process, whatever trains elsewhere."""
        return self.own.trainer

    @property
    def client_states(self) -> dict[str, ClientVectors]:
        """What clients keep, by name, and the models that clients of an asynchronous run are at work on; part of a
        checkpoint."""
        versions = {"versions": self.server.versions} if isinstance(self.server, AsyncServer) else {}
        kept = [self.trainer.clients, *(self.uplink.memories if self.uplink is not None else ())]
        return {**{state.name: state for state in kept if state is not None}, **versions}

    def _limit(self) -> None:
        for state in self.client_states.values():
            state.limit(int(self._client_state.ram_gib * 2**30), int(self._client_state.device_gib * 2**30))

    def _make_trainer(self) -> Trainer:
        factory = self._factory if self.choice is None else self.choice.trainer()
        extra = {} if self.uplink is None else {"uplink": self.uplink}
        return factory(self.dataset, self.model, self.algorithm, self.local, seed=self.seed, **extra)

    def _make_trial(self) -> Trainer:
        """A trainer whose rounds leave no trace."""
        common = (self.dataset, self.model, self.algorithm, self.local)
        num_slots = self.trainer.num_slots
        if num_slots == 1:
            return SerialTrainer(*common, seed=self.seed)
        return VectorizedTrainer(*common, seed=self.seed, num_slots=num_slots, factor=self.uplink is None)

    def use(self, choice: Choice) -> None:
        """Go on with the trainer that a run was begun with, whatever was measured now.

        Raises:
            ValueError: other processes have been told another choice.
        """
        if self.choice is not None and (choice.num_slots, choice.num_threads) != (
            self.choice.num_slots,
            self.choice.num_threads,
        ):
            if not self._alone:
                raise ValueError("the run was begun with another trainer than its workers have: give it as trainer=")
            self.choice = choice
            self.own.trainer = self._make_trainer()
            torch.set_num_threads(choice.num_threads)
            self._limit()

    def rounds(self) -> Iterator[Metrics]:
        """Run to the last round, or until the stop rule ends it, yielding each round's metrics."""
        self.stopped = self.config.stop(self.accuracies)
        if self.stopped is None:
            for metrics in rounds(self.server, self.config, self._look):
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
        rows = None if whole else self.preview
        losses, hits = self.central.per_sample(self.server.vector, rows)
        if whole:
            self._evaluated = (self.server.round, self.central, losses, hits)
        return {"test_loss": self.central.mean(losses, rows), "test_accuracy": self.central.mean(hits, rows)}

    def clients(self) -> pd.DataFrame:
        """Every client: client, split, samples, loss, accuracy.

        The split is the clients' test samples, else their validation samples, else their training samples. The model is
        the global one; with an algorithm whose clients have models of their own, loss and accuracy are those of each
        client's own model, and global_loss and global_accuracy stand beside them.
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
        evaluator = evaluated[1]
        frame = evaluator.per_client(*evaluated[2:])
        frame.insert(1, "split", name)
        if self.algorithm.personalised:
            frame = frame.rename(columns={"loss": "global_loss", "accuracy": "global_accuracy"})
            own = evaluator.per_client(*self._own(evaluator))
            frame["loss"], frame["accuracy"] = own["loss"], own["accuracy"]
        return frame

    def _own(self, evaluator: Evaluator) -> tuple[np.ndarray, np.ndarray]:
        """Loss and correctness of each sample of a split under its owner's own model, in the clients' order."""
        split, server = evaluator.split, self.server
        assert isinstance(server, Server), "an asynchronous algorithm keeps no personal models"
        models = own_models(
            self.dataset,
            self.model,
            self.algorithm,
            self.trainer.memory,
            self.local,
            np.flatnonzero(split.sizes).tolist(),
            broadcast=server.broadcast,
            round=server.round,
            seed=self.seed,
        )
        found = [evaluator.per_sample(vector.clone(), split.rows(client)) for client, vector in models]
        losses, hits = zip(*found, strict=True)
        return np.concatenate(losses), np.concatenate(hits)

    def _losses(self, clients: np.ndarray) -> np.ndarray:
        """(n,) mean loss of the global model on the training samples of these clients (n,), each with some."""
        if self._training is None:
            self._training = Evaluator(self.dataset, self.dataset.train, self.model)
        rows = [self.dataset.train.rows(c) for c in clients.tolist()]
        losses, _ = self._training.per_sample(self.server.vector, np.concatenate(rows))
        return np.array([part.mean() for part in np.split(losses, np.cumsum([len(r) for r in rows])[:-1])])

    def checkpoint(self, config: dict[str, Any]) -> Checkpoint:
        """The state after the last finished round."""
        server = self.server
        return Checkpoint(
            round=server.round,
            vector=server.vector,
            state=server.state,
            config=config,
            dataset=self.dataset.fingerprint(),
            uplink={} if self.uplink is None else self.uplink.snapshot(),
            clients={name: state.snapshot() for name, state in self.client_states.items()},
            clock={} if server.clock is None else server.clock.state_dict(),
        )

    def save(self, directory: Path, config: dict[str, Any]) -> None:
        """Write the checkpoint of the last finished round into `directory`."""
        self.checkpoint(config).save(directory)
        for state in self.client_states.values():
            state.confirm()

    def expected_rows(self, name: str) -> int:
        """How many rows of a client state a whole run is expected to write, with a uniform sampler."""
        num_clients = self.dataset.num_clients
        asked = cohort_size(clients_asked(self.config, num_clients), num_clients)
        if name == "versions":
            return asked
        return math.ceil(num_clients * (1 - (1 - asked / num_clients) ** self.config.num_rounds))

    def restore(self, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: it is of another run.
        """
        checkpoint.check(config, self.dataset.fingerprint())
        self.server.vector.copy_(checkpoint.vector)
        self.server.state = checkpoint.state
        self.server.round = checkpoint.round
        if self.uplink is not None:
            self.uplink.restore(checkpoint.uplink)
        for name, state in self.client_states.items():
            state.restore(checkpoint.clients.get(name, {}))
        if self.server.clock is not None:
            self.server.clock.load_state_dict(checkpoint.clock)


def build_model(dataset: FederatedDataset, model: nn.Module | ModelFactory, *, seed: int, device: str) -> FlatModel:
    """The model as a run begins with it: the same on every node. Arguments as for `Simulation`.

    Raises:
        ValueError: no clients; no such device.
    """
    if dataset.num_clients == 0:
        raise ValueError(f"data={dataset.name} has no clients yet; apply a partition first")
    where = choose_device(device)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    else:
        # Numbers below 1e-38 become zero: they change no result, and a product with one takes 100 times as long.
        torch.set_flush_denormal(True)
    module = _initialise(model, dataset, seed)
    return FlatModel(pool_in_pairs(module) if where.type == "cpu" else module, where)


def _check_transport(algorithm: Algorithm, server: ServerConfig, *, elsewhere: bool) -> None:
    """Refuse what neither other processes nor groups can do.

    Raises:
        ValueError: says what.
    """
    if server.group_rounds > 1 and (
        algorithm.keeps
        or algorithm.broadcast
        or algorithm.sums
        or algorithm.prelude
        or algorithm.weights
        or algorithm.asynchronous
    ):
        raise ValueError(
            f"server.group_rounds={server.group_rounds} needs an algorithm of rounds whose clients send their update "
            f"and nothing else; {algorithm.name} does more: set group_rounds=1"
        )
    if elsewhere and algorithm.asynchronous is not None:
        raise ValueError(
            f"{algorithm.name} steps whenever updates arrive in virtual time, which runs in one process: use "
            "transport=inprocess"
        )
    if elsewhere and algorithm.keeps:
        raise ValueError(
            f"the clients of {algorithm.name} keep vectors from round to round, which do not travel between processes "
            "yet: use transport=inprocess"
        )


def _initialise(model: nn.Module | ModelFactory, dataset: FederatedDataset, seed: int, draw: int = 0) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream(seed, "initialise", draw).initial_seed())
        return model(dataset.input_shape, dataset.num_classes)


def _draw(model: nn.Module | ModelFactory, dataset: FederatedDataset, seed: int, draw: int) -> torch.Tensor:
    """(P + Q,) one more initial model, drawn as the first one (number 0) was."""
    if isinstance(model, nn.Module):
        raise ValueError("this algorithm draws several initial models: give a model factory, not a module")
    return FlatModel(_initialise(model, dataset, seed, draw)).vector


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
    states = simulation.client_states
    for name, state in states.items():
        if checkpoint.every:
            state.locate(directory / "client_state")
        state.require_room(simulation.expected_rows(name))
    if checkpoint.resume is not None:
        if (begun := read_trainer(directory)) is not None:
            simulation.use(Choice(num_slots=begun["num_slots"], num_threads=begun["num_threads"], reason="as begun"))
        device = str(server.vector.device)
        simulation.restore(Checkpoint.load(directory, device), config)
    needed = simulation.footprint()
    log.info(f"a round is predicted to peak at {needed}")
    files = RunDirectory(directory, keep_rounds=server.round)
    if simulation.choice is not None:
        files.write_trainer({"num_slots": simulation.choice.num_slots, "num_threads": simulation.choice.num_threads})
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
                    simulation.save(directory, config)
                    saved = server.round
        except KeyboardInterrupt:
            logged = files.rows[-1]["round"] if files.rows else 0
            if checkpoint.every and server.round > saved and server.round == logged:
                for state in states.values():
                    state.rollback()
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
    if evaluate.clients:
        clients = simulation.clients()
        files.write_clients(clients)
        tracked.clients(clients)
        summary["clients"] = {"split": clients["split"].iloc[0], **spread(clients)}
        if simulation.algorithm.personalised:
            of_global = clients.assign(accuracy=clients["global_accuracy"])
            summary["clients"] |= {f"global_{name}": value for name, value in spread(of_global).items()}
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
