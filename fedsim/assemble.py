"""Builds what a configuration describes, the same way on every node of a run."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from fedsim import __version__
from fedsim.algorithms import Algorithm
from fedsim.algorithms.base import lengths, update_size
from fedsim.checkpoint import comparable
from fedsim.config import Config, TransportConfig
from fedsim.data.federated import FederatedDataset
from fedsim.objective import Objective
from fedsim.parts import poisoned
from fedsim.robust import Aggregator
from fedsim.silos import node_device, silo_trainer
from fedsim.simulation import Simulation
from fedsim.tracking.readback import read_trainer
from fedsim.tracking.summary import config_hash
from fedsim.train.calibrate import Auto
from fedsim.train.choice import Choice
from fedsim.train.serial import SerialTrainer
from fedsim.train.silo import Silo
from fedsim.train.training import Training
from fedsim.transport.base import Transport
from fedsim.transport.carry import Ledger
from fedsim.transport.dispatch import Dispatch
from fedsim.transport.identity import Identity, layout_hash
from fedsim.transport.join import listen
from fedsim.transport.launch import Nodes, new_secret, threads_each
from fedsim.transport.place import Place, exchange_address
from fedsim.transport.secret import read_secret, require_secret
from fedsim.transport.star import Star
from fedsim.transport.tree import count_workers, read_tree
from fedsim.uplink import Uplink
from fedsim.vector import FlatModel

# A node may choose these for itself; everything else it takes from the server.
NODE_KEYS = ("role", "transport", "device", "trainer", "deployment", "data.root", "data.cache_dir", "data.download")
_HANDED_ON = ("timeout", "join_seconds", "slow_factor", "share_seconds")  # to the nodes that a run starts


def build_dataset(config: Config, note: Callable[[str], None]) -> FederatedDataset:
    """The data with its owners; `note` is called with every warning about it."""
    dataset = instantiate(config.data)
    for text in dataset.notes:
        note(text)
    if (objective := build_objective(config)) is not None:
        dataset = replace(dataset, objective=objective)
    return instantiate(config.partition)(dataset, config.seed)


def build_objective(config: Config) -> Objective | None:
    """What a run minimises and measures; None: what its data are for."""
    return instantiate(config.objective) if config.objective else None


def build_simulation(
    config: Config, plain: dict[str, Any], place: Place, directory: Path, note: Callable[[str], None]
) -> Simulation:
    """A whole run, or the server of one.

    Args:
        config: the run.
        plain: the same, resolved, as plain values.
        place: whether the rounds run here or in other processes.
        directory: of the run; started nodes print into its folder nodes/.
        note: see `build_dataset`.
    """
    distributed = place.role == "server" or config.transport.name == "torch_distributed"
    algorithm = instantiate(config.algorithm)
    if distributed and (reason := _refuses_schedulers(algorithm)) is not None and read_tree(config.transport.tree):
        raise ValueError(f"transport.tree: {reason}")
    dataset = build_dataset(config, note)
    trainer = instantiate(config.trainer)
    if isinstance(trainer, Silo):  # a server's own trainer only stands in for workers
        trainer = SerialTrainer if distributed else silo_trainer(trainer, config, plain, place, directory)
    if distributed and place.role == "local" and "OMP_NUM_THREADS" not in os.environ:
        # as many as each worker has, for clients may end up here
        torch.set_num_threads(threads_each(num_started(config.transport)))
    if isinstance(trainer, Auto) and config.checkpoint.resume is not None:
        begun = read_trainer(Path(config.checkpoint.resume))
        if begun is not None:
            trainer = Choice(**begun, reason="as begun")

    def star(simulation: Simulation) -> Transport:
        return open_star(config, plain, place, directory, simulation)

    return Simulation(
        dataset,
        instantiate(config.model),
        algorithm=algorithm,
        local=config.local,
        server=config.server,
        evaluate=config.evaluate,
        client_state=config.client_state,
        sampler=instantiate(config.sampler),
        devices=instantiate(config.devices) if config.devices else None,
        **build_uplink_parts(config),
        trainer=trainer,
        transport=star if distributed else None,
        seed=config.seed,
        device=config.device if distributed else node_device(instantiate(config.trainer), place, config.device),
    )


def build_uplink_parts(config: Config) -> dict[str, Any]:
    """What happens to updates: `aggregator`, `transforms` and `attack`, as `Simulation` takes them."""
    return {
        "aggregator": instantiate(config.aggregator),
        "transforms": [instantiate(transform) for transform in config.transforms.values()],
        "attack": instantiate(config.attack) if config.attack else None,
    }


def training_of(
    config: Config,
    dataset: FederatedDataset,
    model: FlatModel,
    algorithm: Algorithm,
    aggregator: Aggregator,
    uplink: Uplink | None = None,
) -> Training:
    """What makes the trainers of a node."""
    return Training(
        dataset=dataset,
        model=model,
        algorithm=algorithm,
        local=config.local,
        seed=config.seed,
        uplink=uplink,
        sum_dtype=aggregator.dtype,
    )


def build_training_data(config: Config, note: Callable[[str], None]) -> FederatedDataset:
    """What clients train on: `build_dataset`, with the data of attackers as they would have them."""
    attack = instantiate(config.attack) if config.attack else None
    return poisoned(build_dataset(config, note), attack, config.seed)


def num_started(settings: TransportConfig) -> int:
    """Workers that the configuration names."""
    return (settings.num_workers or 0) + count_workers(read_tree(settings.tree))


def _refuses_schedulers(algorithm: Algorithm) -> str | None:
    """Why none may take part; None: they may."""
    if algorithm.asynchronous is None:
        return None
    return (
        f"{algorithm.name} takes single updates as they arrive, where a scheduler sends sums of several: let workers "
        "join the server itself (transport.num_workers)"
    )


class Launched:
    """A star together with the nodes that were started for it."""

    def __init__(self, star: Star, nodes: Nodes) -> None:
        self.star, self.nodes = star, nodes
        self.run_round = star.run_round

    def close(self) -> None:
        try:
            self.star.close()
        finally:
            self.nodes.end()


def open_star(
    config: Config,
    plain: dict[str, Any],
    place: Place,
    directory: Path,
    simulation: Simulation,
) -> Transport:
    """The server's transport: listens, and starts the nodes that the configuration asks for here."""
    settings = config.transport
    branches = read_tree(settings.tree)
    starts = place.role == "local"
    wanted = num_started(settings)
    secret = (read_secret(settings.secret_file) or new_secret()) if starts else require_secret(settings.secret_file)
    nodes: Nodes | None = None

    def expected() -> int:
        if nodes is not None:
            return nodes.num_workers
        return place.num_workers or wanted or 1

    assert place.address is not None
    ledger, choice = Ledger(simulation.own, simulation.uplink, simulation.training), simulation.choice
    identity = identity_of(plain, simulation.dataset, simulation.model, simulation.algorithm, choice)
    star = Star(
        listen(place.address),
        secret=secret,
        identity=replace(identity, row_bytes=ledger.row_bytes),
        own=simulation.own,
        ledger=ledger,
        timeout=settings.timeout,
        join_seconds=settings.join_seconds,
        slow_factor=settings.slow_factor,
        share_seconds=settings.share_seconds,
        refuses_schedulers=_refuses_schedulers(simulation.algorithm),
        expected=expected,
    )

    def transport_of(opened: Star | Launched) -> Transport:
        return opened if simulation.algorithm.asynchronous is None else Dispatch(star, opened.close)

    try:
        if place.rendezvous is not None:
            exchange_address(place, star.address, settings.join_seconds)
        if not starts:
            star.gather()
            return transport_of(star)
        nodes = Nodes(
            directory / "nodes",
            secret=secret,
            settings=[f"transport.{k}={getattr(settings, k)}" for k in _HANDED_ON],
            device=config.device,
            num_workers=wanted,
        )
        for i in range(settings.num_workers or 0):
            nodes.start_worker(f"worker_{i}", star.address)
        nodes.start_tree(branches, star.address)
        star.gather()
        if failures := nodes.failures():
            raise ValueError(f"not all nodes could be started: {failures[0]}")
        return transport_of(Launched(star, nodes))
    except BaseException:
        star.close()
        if nodes is not None:
            nodes.end()
        raise


def identity_of(
    plain: dict[str, Any],
    dataset: FederatedDataset,
    model: FlatModel,
    algorithm: Algorithm,
    choice: Choice | None = None,
) -> Identity:
    """What all nodes of this run must agree on."""
    claims, layout = claims_of(plain), model.layout
    down = layout.size + sum(lengths(algorithm.broadcast, layout.num_parameters, layout.size).values())
    up = (update_size(record, layout) for record in (algorithm, algorithm.prelude) if record is not None)
    return Identity(
        config=plain,
        comparable=claims,
        config_hash=config_hash(claims),
        version=__version__,
        dataset=dataset.fingerprint(),
        layout=layout_hash(layout, model.vector.dtype),
        size=max(down, *up),
        num_clients=dataset.num_clients,
        choice=None if choice is None else choice.facts,
    )


def claims_of(plain: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration must be equal on every node, as dotted keys."""
    ours = {key: value for key, value in plain.items() if key not in NODE_KEYS}
    return comparable(ours)
