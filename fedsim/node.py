"""A worker or a scheduler of a run: joins its parent, builds what the server describes, and serves until the end."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from fedsim import __version__
from fedsim.assemble import build_training_data, build_uplink_parts, identity_of, training_of
from fedsim.clock import clients_asked
from fedsim.config import Config
from fedsim.data.remote import is_remote
from fedsim.initial_model import build_model
from fedsim.parts import make_uplink
from fedsim.sampling import Population
from fedsim.silos import node_device, silo_trainer
from fedsim.train.calibrate import Auto
from fedsim.train.choice import Choice, set_threads
from fedsim.train.silo import Silo
from fedsim.transport.carry import Carrying
from fedsim.transport.identity import Identity
from fedsim.transport.inprocess import InProcess
from fedsim.transport.join import listen, split_address
from fedsim.transport.place import Place, exchange_address
from fedsim.transport.scheduler import Scheduler
from fedsim.transport.secret import require_secret
from fedsim.transport.silo import dismiss
from fedsim.transport.tree import Branch, read_tree
from fedsim.transport.worker import Built, Worker

log = logging.getLogger("fedsim")


def run_node(
    config: Config,
    claims: dict[str, Any] | None,
    place: Place,
    name: str,
    resolve: Callable[[dict[str, Any]], tuple[Config, dict[str, Any]]],
    note: Callable[[str], None],
    directory: Path,
    own_data: Callable[..., Built],
) -> None:
    """Be a worker or a scheduler until the run has ended.

    Args:
        config: of this node.
        claims: what it insists on (`claims_of`); None: whatever the server says.
        place: role and the parent's address.
        name: for the parent's log.
        resolve: the server's configuration -> the same with this node's own choices, checked and plain.
        note: see `build_dataset`.
        directory: of this node; processes that it starts print into its folder nodes/.
        own_data: builds a worker with data of its own (`fedsim.deploy.build_worker`).

    Raises:
        ValueError: the parent refuses this node, or the configuration cannot be built here.
        ConnectionError: there is no parent.
    """
    settings = config.transport
    secret = require_secret(settings.secret_file)
    if place.rendezvous is None:
        assert place.address is not None
        address = place.address
    else:
        address = exchange_address(place, None, settings.join_seconds)
    split_address(address)
    joining: dict[str, Any] = {
        "secret": secret, "name": name, "version": __version__, "claims": claims,
        "timeout": settings.timeout, "join_seconds": settings.join_seconds,
    }  # fmt: skip
    if place.role == "scheduler":
        listener = _serve_at(settings.serve, read_tree(settings.tree), settings.node)
        Scheduler(
            [address], listener, slow_factor=settings.slow_factor, share_seconds=settings.share_seconds, **joining
        ).run()
        return

    def build(identity: Identity, upstream: list[str]) -> Built:
        theirs, plain = resolve(identity.config)
        if is_remote(identity.config["data"]):
            return own_data(identity, config, theirs, plain, place, directory, note)
        algorithm = instantiate(theirs.algorithm)
        trainer = instantiate(theirs.trainer)
        if isinstance(trainer, Auto):
            if identity.choice is None:
                raise ValueError(
                    "trainer=auto chooses at the server, which has another trainer: give it to this node too"
                )
            trainer = Choice(**identity.choice, reason="as the server chose", table=[])
            log.info(f"trains with {trainer}")
        parts = build_uplink_parts(theirs)
        dataset = build_training_data(theirs, note)
        device = node_device(trainer, place, config.device)
        model = build_model(dataset, instantiate(theirs.model), seed=theirs.seed, device=device)
        if isinstance(trainer, Silo):
            trainer = silo_trainer(trainer, theirs, plain, place, directory)
        if isinstance(trainer, Choice):
            set_threads(trainer.num_threads)
            trainer = trainer.trainer()
        drawn = instantiate(theirs.sampler)(
            Population(sizes=dataset.train.sizes), clients_asked(theirs.server, dataset.num_clients)
        )
        uplink = make_uplink(model, algorithm, theirs.server, drawn, dataset.num_clients, seed=theirs.seed, **parts)
        training = training_of(theirs, dataset, model, algorithm, parts["aggregator"], uplink)
        own = Carrying(InProcess(training.trainer(trainer), dataset.train, theirs.local, seed=theirs.seed), uplink)
        built = identity_of(plain, dataset, model, algorithm)
        ready = {"config_hash": built.config_hash, "dataset": built.dataset, "layout": built.layout}
        return Built(transport=own, device=model.device, ready=lambda: ready)

    try:
        Worker([address], build=build, **joining).run()
    finally:
        if place.seat is not None:
            dismiss(place.seat, secret)


def _serve_at(serve: str | None, tree: tuple[Branch, ...], node: str | None) -> socket.socket:
    """Where a scheduler listens: an address, or "fd:N", a listening socket that it has inherited."""
    if serve is not None and serve.startswith("fd:"):
        return socket.socket(fileno=int(serve.removeprefix("fd:")))
    ours = [branch.address for top in tree for branch, _ in top.walk() if branch.name == node]
    return listen(serve or next(filter(None, ours), "127.0.0.1:0"))
