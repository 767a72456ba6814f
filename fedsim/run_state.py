"""What a run is between two rounds: what a checkpoint takes from it, and what it gives back."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fedsim.algorithms import Algorithm
from fedsim.async_server import AsyncServer
from fedsim.attacks import Attack
from fedsim.checkpoint import Checkpoint
from fedsim.client_state import ClientVectors
from fedsim.config import ClientStateConfig, LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.objective import Objective
from fedsim.robust import Aggregator
from fedsim.server import Server, refuse_half_a_round
from fedsim.transforms import Transform
from fedsim.transport.inprocess import InProcess
from fedsim.uplink import Uplink


def named_parts(
    objective: Objective,
    algorithm: Algorithm,
    model: nn.Module,
    aggregator: Aggregator,
    transforms: Sequence[Transform],
    attack: Attack | None,
) -> dict[str, Any]:
    """The parts of a run by name, as plain values: what a checkpoint knows of a run without a configuration."""
    return {
        "objective": {"name": objective.name},
        "algorithm": {"name": algorithm.name},
        "model": {"name": type(model).__name__},
        "aggregator": {
            "name": aggregator.name,
            "equal_weights": aggregator.equal_weights,
            "dtype": str(aggregator.dtype).removeprefix("torch."),
        },
        "transforms": [transform.name for transform in transforms],
        **({} if attack is None else {"attack": {"name": attack.name, "fraction": attack.fraction}}),
    }


def settings_of(
    name: str, seed: int, parts: dict[str, Any], local: LocalConfig, server: ServerConfig
) -> dict[str, Any]:
    """What a run is made with, as plain values; options of an algorithm, a transform or an attack are not among them.

    Args:
        name: of the run.
        seed, local, server: of the run.
        parts: `named_parts`.
    """
    return {"name": name, "seed": seed, **parts, "local": asdict(local), "server": asdict(server)}


class RunState:
    """The state of a run, which lies with its server, its uplink, and the clients.

    Args:
        server: holds the global model.
        own: trains here, in a trainer that may change before the first round.
        uplink: of the run; None: updates are averaged, and no more.
        dataset: of the run, whose fingerprint a checkpoint has.
        settings: what the run is made with, for a checkpoint without a configuration.
        client_state: memory for the vectors that clients keep.

    Attributes:
        scores: of the evaluations so far (`fedsim.score`): what the stop rule reads.
    """

    def __init__(
        self,
        server: Server | AsyncServer,
        own: InProcess,
        uplink: Uplink | None,
        dataset: FederatedDataset,
        settings: dict[str, Any],
        client_state: ClientStateConfig,
    ) -> None:
        self.server, self.own, self.uplink, self.dataset, self.settings = server, own, uplink, dataset, settings
        self.limits = int(client_state.ram_gib * 2**30), int(client_state.device_gib * 2**30)
        self.scores: list[float] = []

    @property
    def clients(self) -> dict[str, ClientVectors]:
        """What clients keep, by name, and the models that clients of an asynchronous run are at work on."""
        versions = {"versions": self.server.versions} if isinstance(self.server, AsyncServer) else {}
        kept = [self.own.trainer.clients, *(self.uplink.memories if self.uplink is not None else ())]
        return {**{state.name: state for state in kept if state is not None}, **versions}

    def limit(self) -> None:
        """Hold what clients keep, in a new trainer too, to the memory that they may have."""
        for state in self.clients.values():
            state.limit(*self.limits)

    def checkpoint(self, config: dict[str, Any] | None) -> Checkpoint:
        """The state after the last finished round; `config` as for `save`.

        Raises:
            ValueError: the round after it was broken off while it moved the model.
        """
        server = self.server
        refuse_half_a_round(server)
        return Checkpoint(
            round=server.round,
            vector=server.vector,
            state=server.state,
            config=config or self.settings,
            dataset=self.dataset.fingerprint(),
            uplink={} if self.uplink is None else self.uplink.snapshot(),
            clients={name: state.snapshot() for name, state in self.clients.items()},
            clock={} if server.clock is None else server.clock.state_dict(),
            scores=tuple(self.scores),
        )

    def save(self, directory: Path, config: dict[str, Any] | None) -> None:
        """Write the checkpoint of the last finished round into `directory`, and beside it what clients keep.

        Args:
            directory: of the run; made where it is not there.
            config: of the run, as plain values, which `restore` compares; None: its settings.

        Raises:
            OSError: the disk is full or not writable.
            ValueError: as `checkpoint`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for state in self.clients.values():
            if state.directory is None:
                state.locate(directory / "client_state")
        self.checkpoint(config).save(directory)
        for state in self.clients.values():
            state.confirm()

    def restore(self, checkpoint: Checkpoint, config: dict[str, Any] | None) -> None:
        """Take the state of a checkpoint; `config` as it was given to `save`.

        Raises:
            ValueError: it is of another run.
        """
        server = self.server
        checkpoint.check(config or self.settings, self.dataset.fingerprint())
        if checkpoint.vector.shape != server.vector.shape or checkpoint.state.keys() != server.state.keys():
            raise ValueError("checkpoint.resume: the checkpoint is of another model or algorithm")
        for state in self.clients.values():
            if state.directory is None and checkpoint.directory is not None:
                state.locate(checkpoint.directory / "client_state")
        self.scores = [*checkpoint.scores]
        server.vector.copy_(checkpoint.vector)
        server.state = checkpoint.state
        server.round = checkpoint.round
        if self.uplink is not None:
            self.uplink.restore(checkpoint.uplink)
        for name, state in self.clients.items():
            state.restore(checkpoint.clients.get(name, {}))
        if server.clock is not None:
            server.clock.load_state_dict(checkpoint.clock)
