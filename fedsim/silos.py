"""Builds the processes of a silo from a configuration (`fedsim.train.silo`)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from fedsim import __version__
from fedsim.config import Config
from fedsim.data.federated import FederatedDataset
from fedsim.initial_model import build_model
from fedsim.train.silo import Silo, SiloTrainer, require_separable
from fedsim.transport.identity import layout_hash
from fedsim.transport.launch import new_secret
from fedsim.transport.place import Place
from fedsim.transport.secret import read_secret, require_secret
from fedsim.transport.silo import follow, lead
from fedsim.vector import FlatModel


def silo_trainer(
    silo: Silo, config: Config, plain: dict[str, Any], place: Place, directory: Path
) -> Callable[..., SiloTrainer]:
    """A factory of the trainer that this process shares with others (`fedsim.train.silo`).

    Args:
        silo: settings.
        config, plain: the run as this process knows it; the others take it from here.
        place: of this process.
        directory: those that are started here print into its folder nodes/.
    """
    settings = config.transport
    alone = place.seat is None
    secret = (read_secret(settings.secret_file) or new_secret()) if alone else require_secret(settings.secret_file)

    begun = False

    def make(dataset: FederatedDataset, model: FlatModel, *rest: Any, **more: Any) -> SiloTrainer:
        nonlocal begun
        require_separable(model.module)  # before anybody is started
        if begun and place.seat is not None:
            raise ValueError("the parent now runs something else; start this silo again")
        begun = True
        group, end = lead(
            silo,
            place.seat,
            config=plain,
            about=_about(dataset, model),
            secret=secret,
            join_seconds=settings.join_seconds,
            device=config.device,
            name=settings.node or "silo",
            directory=directory / "nodes",
        )
        return SiloTrainer(dataset, model, *rest, group=group, ended=end, **more)

    return make


def _about(dataset: FederatedDataset, model: FlatModel) -> dict[str, str]:
    layout = layout_hash(model.layout, model.vector.dtype)
    samples = replace(dataset.train, offsets=None, order=None)  # whose they are does not matter for a gradient
    bare = replace(dataset, train=samples, test=None, validation=None, client_ids=(), groups=())
    return {"version": __version__, "data": bare.fingerprint(), "model": layout}


def follow_silo(
    config: Config,
    place: Place,
    resolve: Callable[[dict[str, Any]], tuple[Config, dict[str, Any]]],
    build_dataset: Callable[[Config], FederatedDataset],
) -> None:
    """Be a process of a silo that is not its first, until the first one ends it.

    Args:
        config, place: of this process.
        resolve: the first process's configuration -> the same with this one's own choices, checked and plain.
        build_dataset: the data with its owners.
    """
    assert place.seat is not None
    secret = require_secret(config.transport.secret_file)

    def build(leading: dict[str, Any]) -> tuple[Silo, FederatedDataset, FlatModel, dict[str, str]]:
        theirs, _ = resolve(leading)
        silo = instantiate(leading["trainer"])
        dataset = build_dataset(theirs)
        device = node_device(silo, place, theirs.device)
        model = build_model(dataset, instantiate(theirs.model), seed=theirs.seed, device=device)
        return silo, dataset, model, _about(dataset, model)

    follow(place.seat, secret=secret, build=build)


def node_device(silo: object, place: Place, device: str) -> str:
    """Of this process, which may be one of a silo."""
    rank = 0 if place.seat is None else place.seat.rank
    if isinstance(silo, Silo) and silo.devices is not None and rank < len(silo.devices):
        return silo.devices[rank]
    return _device(device, place.local_rank)


def _device(name: str, local_rank: int | None) -> str:
    """ "auto" is, for process `local_rank` of its machine, one of its GPUs."""
    if name == "auto" and local_rank is not None and torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}"
    return name
