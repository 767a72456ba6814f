"""A run put together from plain objects, for a notebook and for the command line alike.

simulation = Simulation(dataset, leaf_cnn, local=LocalConfig(learning_rate=0.06))
for metrics in simulation.rounds():
    print(metrics["round"], metrics["train_loss"])
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fedsim.algorithms import Algorithm, fedavg
from fedsim.attacks import Attack
from fedsim.checkpoint import Checkpoint
from fedsim.client_state import ClientVectors
from fedsim.clock import clients_asked
from fedsim.config import ClientStateConfig, EvaluateConfig, LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.devices import Devices
from fedsim.evaluate import spread
from fedsim.examine import Examiner, Examines
from fedsim.initial_model import ModelFactory, build_model, draw_model
from fedsim.memory import free_memory_bytes, give_back_memory
from fedsim.objective import Objective
from fedsim.parts import make_server, make_uplink, poisoned, refuse_kinds, refuse_misfits, tell_biases
from fedsim.robust import Aggregator, mean
from fedsim.run_state import RunState, named_parts, settings_of
from fedsim.sampling import Population, Sampler, uniform
from fedsim.score import score
from fedsim.server import Metrics, Server, rounds
from fedsim.train.base import Trainer
from fedsim.train.calibrate import Auto
from fedsim.train.choice import Choice, set_threads
from fedsim.train.footprint import Footprint, footprint, require
from fedsim.train.own import own_models
from fedsim.train.serial import SerialTrainer
from fedsim.train.silo import SiloTrainer
from fedsim.train.training import Training
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import Transform
from fedsim.transport.base import Grouped, Transport
from fedsim.transport.inprocess import InProcess


class Simulation:
    """A federated run.

    Args:
        dataset: samples and their owners; a partition must have been applied.
        model: a factory, called as model(input_shape, num_classes) under the run's seed, or a module, which is
            taken over (its parameters become views into the shared vector).
        objective: what is minimised and measured; None: what the dataset is for.
        algorithm: None is FedAvg.
        local: what a client does.
        server: rounds, cohort size, how often to evaluate.
        evaluate: what is evaluated.
        devices: devices(num_clients, client_ids, seed) -> the clients' devices; None: nothing is known of them.
        client_state: memory for the vectors that clients keep.
        sampler: sampler(population, clients_per_round) -> who trains in a round.
        trainer: trainer(dataset, model, algorithm, local, seed=...) -> the trainer, or `Auto`, which measures and
            chooses one, or a `Choice` that was made before; the latter two also set PyTorch's number of threads. With
            transforms, an attack or a robust aggregator the trainer is also given uplink=..., with a mean in float32
            sum_dtype=....
        aggregator: how updates become one; None is their mean.
        transforms: what happens to each update before, in order.
        attack: whose data or updates are bad; None: nobody's.
        transport: called with this simulation as soon as it can train here (`own`): where rounds run. None: here.
        examiner: evaluates the models; None: this process, on the splits of the dataset.
        seed: of everything that is drawn.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Attributes:
        settings: what the run is made with (`fedsim.run_state.settings_of`), for one without a configuration.

    Raises:
        ValueError: no clients; settings that do not fit each other.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        model: nn.Module | ModelFactory,
        *,
        objective: Objective | None = None,
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
        examiner: Examines | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        algorithm = algorithm or fedavg()
        refuse_kinds(algorithm, local, server, aggregator, transforms)
        refuse_misfits(algorithm, server, sampler, elsewhere=transport is not None, timed=devices is not None)
        dataset = poisoned(dataset if objective is None else replace(dataset, objective=objective), attack, seed)
        self.dataset, self.config, self.seed, self.algorithm, self.local = dataset, server, seed, algorithm, local
        self.model = build_model(dataset, model, seed=seed, device=device)
        self.examiner = examiner or Examiner(dataset, self.model, evaluate, seed=seed)
        self._spreads = evaluate.spread
        if evaluate.spread and not self.examiner.sees_clients:
            raise ValueError("evaluate.spread: the figures of single clients stay with their workers; set it to false")
        made = None if devices is None else devices(dataset.num_clients, dataset.client_ids, seed)
        population = Population(
            sizes=dataset.train.sizes, losses=self._losses, there=None if made is None else made.there
        )
        drawn = sampler(population, clients_asked(server, dataset.num_clients))
        aggregator = aggregator or mean()
        self.uplink = make_uplink(
            self.model, algorithm, server, drawn, dataset.num_clients, aggregator, transforms, attack, seed
        )
        parts = named_parts(dataset.objective, algorithm, self.model.module, aggregator, transforms, attack)
        self.settings = settings_of(f"{dataset.name}_{algorithm.name}", seed, parts, local, server)
        tell_biases(algorithm, self.uplink, sampler)
        self.training = Training(
            dataset=dataset,
            model=self.model,
            algorithm=algorithm,
            local=local,
            seed=seed,
            uplink=self.uplink,
            sum_dtype=aggregator.dtype,
        )
        self.choice: Choice | None = None
        self._factory = SerialTrainer if isinstance(trainer, Auto | Choice) else trainer
        self.own = InProcess(self.training.trainer(self._factory), dataset.train, local, seed=seed)
        self.server = make_server(
            self.model,
            dataset,
            algorithm,
            local,
            server,
            sampler=drawn,
            devices=made,
            transport=self.own,
            elsewhere=transport is not None,
            uplink=self.uplink,
            draw=lambda i: draw_model(model, dataset, seed, i).to(self.model.device),
            settled=lambda: self.trainer.memory.settled(),  # of the trainer that trains then
            seed=seed,
        )
        if isinstance(trainer, Auto):
            job = self.server.next_job()
            trainer = trainer.choose(
                self.training,
                cohort=job.cohort,
                broadcast=job.broadcast,
                scale=job.scale,
                num_rounds=server.num_rounds,
            )
            self.model.load(self.server.vector)
        if isinstance(trainer, Choice):
            self._choose(trainer)
        if isinstance(self.trainer, VectorizedTrainer) and not self.model.layout.buffers:
            self.model.rest_on(self.server.vector)  # slots have rows of their own; but a buffer may move in any call
        give_back_memory()  # of trials, and of the module's own parameters
        self.run_state = RunState(self.server, self.own, self.uplink, dataset, self.settings, client_state)
        self.run_state.limit()
        if self.examiner.test is None and server.stops_early:
            raise ValueError(f"server.stop_at_accuracy and server.patience need a test set; {dataset.name} has none")
        if server.stop_at_accuracy is not None and "accuracy" not in dataset.objective.metrics:
            raise ValueError(f"server.stop_at_accuracy: the objective {dataset.objective.name} measures no accuracy")
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
            # a silo is started once; what its first process takes is what a serial trainer does
            trainer = self.training.trial(SerialTrainer if isinstance(trainer, SiloTrainer) else self._factory)
            trainer.num_slots = self.trainer.num_slots
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
        return self.run_state.clients

    def _choose(self, choice: Choice) -> None:
        self.choice, self._factory = choice, choice.trainer()
        self.own.trainer = self.training.trainer(self._factory)
        set_threads(choice.num_threads)

    def use(self, choice: Choice) -> None:
        """Go on with the trainer that a run was begun with, whatever was measured now.

        Raises:
            ValueError: other processes have been told another choice.
        """
        if self.choice is not None and choice.facts != self.choice.facts:
            if not self._alone:
                raise ValueError("the run was begun with another trainer than its workers have: give it as trainer=")
            self._choose(choice)
            self.run_state.limit()

    def rounds(self) -> Iterator[Metrics]:
        """Run to the last round, or until the stop rule ends it, yielding each round's metrics."""
        self.stopped = self.config.stop(self.run_state.scores)
        if self.stopped is None:
            for metrics in rounds(self.server, self.config, self._look):
                yield metrics
                if self.stopped is not None:
                    break

    def _look(self, last: bool) -> Metrics:
        """An evaluation that is due. One that would end the run is repeated as its last: what holds there counts."""
        metrics = self.evaluate(whole=last)
        if self.config.stops_early and (found := score(metrics)) is not None:
            if not last and self.config.stop([*self.run_state.scores, found]):
                metrics = self.evaluate()
                found = score(metrics)
                assert found is not None, "it was measured a moment ago"
            self.run_state.scores.append(found)
            self.stopped = self.config.stop(self.run_state.scores)
        return metrics | spread(self.clients()) if self._spreads else metrics

    def evaluate(self, *, whole: bool = True) -> Metrics:
        """test_loss, test_accuracy and what else the objective measures of the global model; {} without a test set.

        Args:
            whole: all test samples of `evaluate.max_clients`, else those of `evaluate.max_samples`.
        """
        return self.examiner.central(self.server.vector, self.server.round, whole=whole)

    def clients(self) -> pd.DataFrame:
        """Clients under the global model, and under their own where they have one: see `Examiner.clients`."""
        own = self._own if self.algorithm.personalised else None
        return self.examiner.clients(self.server.vector, self.server.round, own)

    def _own(self, clients: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """The clients' own models."""
        server = self.server
        assert isinstance(server, Server), "an asynchronous algorithm keeps no personal models"
        return own_models(self.training, self.trainer.memory, clients, broadcast=server.broadcast, round=server.round)

    def _losses(self, clients: np.ndarray) -> np.ndarray:
        """(n,) mean loss of the global model on the training samples of these clients (n,), each with some."""
        return self.examiner.training_losses(self.server.vector, clients)

    def save(self, directory: str | Path, config: dict[str, Any] | None = None) -> None:
        """Write the checkpoint of the last finished round into `directory`, and beside it what clients keep.

        Args:
            directory: made where it is not there.
            config: of the run, as plain values, which `restore` compares; None: `settings`.

        Raises:
            OSError: the disk is full or not writable.
            ValueError: the round after it was broken off while it moved the model.
        """
        self.run_state.save(Path(directory), config)

    def restore(self, checkpoint: Checkpoint, config: dict[str, Any] | None = None) -> None:
        """Continue from a checkpoint of the same run: `restore(Checkpoint.load(directory, "cpu"))`.

        Args:
            checkpoint: of `save`.
            config: as it was given to `save`.

        Raises:
            ValueError: it is of another run.
        """
        self.run_state.restore(checkpoint, config)
