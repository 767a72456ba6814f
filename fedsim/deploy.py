"""A deployment: a server without data, and workers that bring their own (docs/deployment.md)."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from torch import Tensor

from fedsim.algorithms import Algorithm
from fedsim.assemble import build_dataset, build_objective, claims_of, identity_of, training_of
from fedsim.config import Config
from fedsim.data.federated import FederatedDataset
from fedsim.data.remote import held_elsewhere
from fedsim.evaluate import Evaluator
from fedsim.initial_model import build_model
from fedsim.objective import Objective, chosen
from fedsim.silos import node_device, silo_trainer
from fedsim.simulation import Simulation
from fedsim.tracking.summary import config_hash
from fedsim.train.base import Trainer
from fedsim.train.calibrate import Auto
from fedsim.train.choice import set_threads
from fedsim.train.serial import SerialTrainer
from fedsim.train.silo import Silo
from fedsim.transport.base import Job
from fedsim.transport.identity import Identity, layout_hash
from fedsim.transport.join import listen
from fedsim.transport.own_data import Evaluate, OwnData
from fedsim.transport.owners import Owners, RemoteExaminer
from fedsim.transport.place import Place
from fedsim.transport.secret import require_secret
from fedsim.transport.star import Star
from fedsim.transport.worker import Built
from fedsim.vector import FlatModel

log = logging.getLogger("fedsim")

_MOST_CLIENTS = 1_000_000  # for the sizes of messages, before anybody has said how many there are


def build_server(config: Config, plain: dict[str, Any], place: Place) -> Simulation:
    """The server, once its workers have joined and said which clients they hold.

    Args:
        config: the run.
        plain: the same, resolved, as plain values.
        place: of this process.

    Raises:
        ValueError: what is asked cannot be done without the data, or nobody has joined.
    """
    if place.role != "server":
        raise ValueError("data=remote has no sample here: set role=server, and let workers join with data of their own")
    settings, algorithm = config.transport, instantiate(config.algorithm)
    _require_plain(config, algorithm)
    about = {key: value for key, value in config.data.items() if key != "_target_"}
    about["objective"] = objective = chosen(build_objective(config))
    factory = instantiate(config.model)
    some = held_elsewhere(["some"], np.ones(1, np.int64), **about)
    model = build_model(some, factory, seed=config.seed, device=config.device)
    identity = replace(identity_of(plain, some, model, algorithm), dataset=None, num_clients=_MOST_CLIENTS)
    assert place.address is not None
    star = Star(
        listen(place.address),
        secret=require_secret(settings.secret_file),
        identity=identity,
        own=None,
        timeout=settings.timeout,
        join_seconds=settings.join_seconds,
        share_seconds=settings.share_seconds,
        expected=lambda: settings.num_workers or 1,
    )
    owners = Owners(star, objective, join_seconds=settings.join_seconds)
    try:
        owners.gather()
        return Simulation(
            held_elsewhere(owners.names, owners.sizes, **about),
            factory,
            algorithm=algorithm,
            local=config.local,
            server=config.server,
            evaluate=config.evaluate,
            sampler=instantiate(config.sampler),
            devices=instantiate(config.devices) if config.devices else None,
            trainer=SerialTrainer,  # stands by, for the server trains nothing
            transport=lambda simulation: owners,
            examiner=RemoteExaminer(owners),
            seed=config.seed,
            device=config.device,
        )
    except BaseException:
        star.close()
        raise


def _require_plain(config: Config, algorithm: Algorithm) -> None:
    """Refuse what needs more of the clients than sizes, updates and sums.

    Raises:
        ValueError: says what.
    """
    if algorithm.keeps or algorithm.asynchronous is not None:
        raise ValueError(
            f"data=remote trains in rounds of clients that keep nothing from one to the next; {algorithm.name} does "
            "more: choose another algorithm, for example fedavg, fedprox or fedadam"
        )
    if config.transforms or config.attack or not instantiate(config.aggregator).plain:
        raise ValueError("data=remote averages what workers send: leave out transforms and attack, set aggregator=mean")
    if config.server.group_rounds > 1:
        raise ValueError("data=remote has no groups of clients: set server.group_rounds=1")


def build_worker(
    identity: Identity,
    config: Config,
    theirs: Config,
    plain: dict[str, Any],
    place: Place,
    directory: Path,
    note: Callable[[str], None],
) -> Built:
    """A worker with data of its own, below a server that has none.

    Args:
        identity: of the run.
        config: of this node.
        theirs, plain: the server's configuration with this node's own choices, its data among them.
        place, directory, note: as for `fedsim.node.run_node`.

    Raises:
        ValueError: the data do not fit the run.
    """
    dataset, algorithm, asked = build_dataset(theirs, note), instantiate(theirs.algorithm), instantiate(theirs.trainer)
    objective = chosen(build_objective(theirs))
    _require_fit(dataset, identity.config["data"], objective)
    device = node_device(asked, place, config.device)
    model = build_model(dataset, instantiate(theirs.model), seed=theirs.seed, device=device)
    aggregator = instantiate(theirs.aggregator)

    def make_trainer(seated: FederatedDataset, job: Job) -> Trainer:
        factory = asked
        training = training_of(theirs, seated, model, algorithm, aggregator)
        if isinstance(asked, Auto):
            choice = asked.choose(
                training,
                cohort=job.cohort,
                broadcast=job.broadcast,
                scale=job.scale,
                num_rounds=theirs.server.num_rounds,
            )
            log.info(f"trainer=auto chose {choice}")
            set_threads(choice.num_threads)
            factory = choice.trainer()
        elif isinstance(asked, Silo):
            factory = silo_trainer(asked, theirs, plain, place, directory)
        return training.trainer(factory)

    own = OwnData(
        dataset,
        make_trainer,
        local=theirs.local,
        seed=theirs.seed,
        prefix=config.deployment.prefix,
        evaluate=evaluation(dataset, model) if config.deployment.evaluate else None,
    )
    shared = {key: identity.config[key] for key in ("data", "partition")}
    ready = {
        "config_hash": config_hash(claims_of({**plain, **shared})),
        "layout": layout_hash(model.layout, model.vector.dtype),
        "holds": own.holds,
    }
    handlers = {"seat": own.seat, "evaluate": own.test}
    return Built(transport=own, device=model.device, ready=lambda: ready, handlers=handlers)


def _require_fit(dataset: FederatedDataset, run: dict[str, Any], objective: Objective) -> None:
    for what, ours, theirs in (
        ("samples of shape", list(dataset.input_shape), list(run["input_shape"])),
        ("classes:", dataset.num_classes, run["num_classes"]),
    ):
        if ours != theirs:
            raise ValueError(
                f"this worker's data has {what} {ours}, the run's {theirs}: prepare all workers' data alike, with the "
                "same list of classes (data.classes of data=folders), and tell the server data.input_shape and "
                "data.num_classes"
            )
    if dataset.objective.name != objective.name:
        raise ValueError(
            f"this worker's data is for the objective {dataset.objective.name}, the run's is {objective.name}: start "
            "the server with objective=NAME"
        )


def evaluation(dataset: FederatedDataset, model: FlatModel) -> Evaluate:
    """What a worker tells of a model: sums over its test samples, or else its clients' validation samples."""
    split = dataset.validation if dataset.test is None else dataset.test
    if split is None or not split.num_samples:
        return lambda vector: None
    evaluator = Evaluator(dataset, split, model)
    clients = float(np.count_nonzero(split.sizes)) if split.owned else float(dataset.num_clients)

    def evaluate(vector: Tensor) -> dict[str, float]:
        found, places = evaluator.per_sample(vector.to(model.device)), evaluator.places()
        numbers = {"places": math.fsum(places), "samples": float(len(places)), "clients": clients}
        return numbers | {f"sum_{name}": math.fsum(values * places) for name, values in found.items()}

    return evaluate
