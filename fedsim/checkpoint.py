"""Checkpoints: one safetensors file, written atomically, that continues a run bitwise. No pickle.

Every random draw is a function of (seed, purpose, round, client), so the state of a run is the global vector, the
algorithm's vectors and the number of the round; there is no generator to save. The clients' vectors, which may be more
than memory holds, stay in files of their own (`fedsim.client_state`); the checkpoint has the index of their rows.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedsim.files import CHECKPOINT as FILE
from fedsim.files import write_tensors

_FORMAT = 1

# A resumed run may differ in these: where things lie, how it reports, and how long it runs.
_MAY_DIFFER = (
    "checkpoint",
    "tracking",
    "server.num_rounds",
    "server.stop_at_accuracy",
    "server.patience",
    "data.root",
    "data.cache_dir",
    "data.download",
    "client_state",
    "role",
    "transport",
    "deployment",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        round: the last finished round.
        vector: (P + Q,) the global model.
        state: the algorithm's server vectors.
        uplink: what `fedsim.uplink.Uplink` keeps from round to round; empty where there is none.
        config: the run's resolved configuration, as plain values.
        dataset: `FederatedDataset.fingerprint` of its data.
        clients: `ClientVectors.snapshot` of each of the clients' vectors, by name.
        clock: virtual time, and who is at work, of runs with devices.
        scores: of the evaluations so far, which the stop rule reads.
        directory: where it was read from; None: it was not.
    """

    round: int
    vector: Tensor
    state: dict[str, Tensor]
    config: dict[str, Any]
    dataset: str
    uplink: dict[str, Tensor] = field(default_factory=dict)
    clients: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    clock: dict[str, Tensor] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    directory: Path | None = None

    def save(self, directory: Path) -> None:
        """Write `directory/checkpoint.safetensors` in the place of the one before.

        Raises:
            OSError: the disk is full or not writable; the checkpoint before is still whole.
        """
        about = {"format": _FORMAT, "round": self.round, "config": self.config, "dataset": self.dataset}
        about["scores"] = self.scores
        tensors = {"vector": self.vector, **{f"state.{name}": t for name, t in self.state.items()}}
        tensors |= {f"clock.{name}": t for name, t in self.clock.items()}
        tensors |= {f"uplink.{name}": t for name, t in self.uplink.items()}
        for name, index in self.clients.items():
            tensors |= {f"clients.{name}.{part}": t for part, t in index.items()}
        own, places = {}, set()
        for name, tensor in tensors.items():
            own[name] = tensor.detach().cpu().contiguous()
            place = own[name].untyped_storage().data_ptr()
            if place in places:  # an algorithm's vectors may be views of one tensor, which safetensors does not write
                own[name] = own[name].clone()
            places.add(place)
        try:
            write_tensors(directory / FILE, own, {"fedsim": json.dumps(about)})
        except OSError as error:
            raise OSError(
                f"round {self.round}: cannot write the checkpoint in {directory} ({error}); "
                "free some space there or set checkpoint.every=0; the last checkpoint is untouched"
            ) from error

    @classmethod
    def load(cls, directory: Path, device: str) -> "Checkpoint":
        """Read the checkpoint of a run directory onto `device`.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ValueError(
                f"checkpoint.resume={directory}: no {FILE} there; give the directory of a run that wrote one"
            )
        try:
            with safe_open(path, framework="pt", device=device) as file:
                about = json.loads((file.metadata() or {})["fedsim"])
                if about["format"] != _FORMAT:
                    raise ValueError(
                        f"{path} has checkpoint format {about['format']}, this version reads format {_FORMAT}"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            vector, round, config, dataset = tensors.pop("vector"), about["round"], about["config"], about["dataset"]
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a checkpoint of fedsim, or it is damaged: {error}") from error
        clients: dict[str, dict[str, Tensor]] = {}
        for key in [key for key in tensors if key.startswith("clients.")]:
            name, part = key.removeprefix("clients.").rsplit(".", 1)
            clients.setdefault(name, {})[part] = tensors.pop(key)
        clock = {key.removeprefix("clock."): tensors.pop(key) for key in list(tensors) if key.startswith("clock.")}
        uplink = {key.removeprefix("uplink."): tensors.pop(key) for key in list(tensors) if key.startswith("uplink.")}
        return cls(
            round=round,
            vector=vector,
            state={name.removeprefix("state."): tensor for name, tensor in tensors.items()},
            config=config,
            dataset=dataset,
            uplink=uplink,
            clients=clients,
            clock=clock,
            scores=tuple(about.get("scores", ())),
            directory=Path(directory),
        )

    def check(self, config: dict[str, Any], dataset: str) -> None:
        """Refuse to continue another run.

        Raises:
            ValueError: names every key of the configuration that differs, with both values, or the data.
        """
        ours, theirs = comparable(config), comparable(self.config)
        differing = [
            f"{key} ({theirs.get(key, 'not set')!s} there, {ours.get(key, 'not set')!s} here)"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        if differing:
            raise ValueError(
                "checkpoint.resume: the checkpoint is of another run; it differs in " + ", ".join(differing)
            )
        if dataset != self.dataset:
            raise ValueError("checkpoint.resume: the configuration is the same but the data or its partition is not")


def comparable(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The configuration as dotted keys, without those that a resumed run may change."""
    flat = {}
    for key, value in config.items():
        name = prefix + key
        if name in _MAY_DIFFER:
            continue
        if isinstance(value, dict):
            flat |= comparable(value, name + ".")
        else:
            flat[name] = value
    return flat
