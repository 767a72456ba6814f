"""What is around the training: saving, evaluating, showing, and where rounds run."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to continue.

    Attributes:
        every: rounds between checkpoints; the last round is always saved. 0: none at all.
        resume: the directory of the run to continue; None starts anew.
    """

    every: int = 10
    resume: str | None = None

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"checkpoint.every must be 0 (never) or more, got {self.every}")

    def due(self, round: int, num_rounds: int) -> bool:
        """Whether the state after `round` is saved."""
        return self.every > 0 and (round % self.every == 0 or round == num_rounds)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured beside the training loss.

    Attributes:
        max_samples: test samples used while the run goes on, a seeded draw that stays the same; None: all. The
            last round uses all samples of `max_clients`.
        max_clients: clients that the last round is judged by, a seeded draw; None: all. A test set that belongs to
            no client is used whole.
        clients: after the last round, evaluate the global model on each of these clients and write clients.csv.
        spread: at every evaluation also tell how these clients' figures are spread (client_accuracy_p10 and so on), of
            their own models where they have some.
    """

    max_samples: int | None = None
    max_clients: int | None = None
    clients: bool = True
    spread: bool = False

    def __post_init__(self) -> None:
        for name in ("max_samples", "max_clients"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluate.{name} must be at least 1 or null, got {value}")


@dataclass(frozen=True, kw_only=True)
class ClientStateConfig:
    """Where the vectors lie that clients keep from round to round, and in asynchronous runs the older models that
    clients are at work on; what does not fit lies in a file.

    Attributes:
        ram_gib: budget in RAM, in GiB.
        device_gib: the same on a GPU.
    """

    ram_gib: float = 1.0
    device_gib: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ram_gib", "device_gib"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"client_state.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What is shown while a run goes on.

    Attributes:
        progress: the progress bar; False: plain lines; None: the bar in a terminal, plain lines elsewhere.
        quiet: nothing but warnings and errors on the terminal; run.log tells the rest.
        sinks: name -> `_target_` factory of a tracker (`fedsim.tracking.sinks`); chosen with tracking=[...].
    """

    progress: bool | None = None
    quiet: bool = False
    sinks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Where rounds run: in this process, or in others (docs/deployment.md).

    Attributes:
        name: "inprocess" or "torch_distributed".
        num_workers: workers that are started on this machine and ended with the run; with role=server, those to wait
            for. None: whoever joins.
        tree: schedulers by name, each {workers: N, children: {...}, address: HOST:PORT}, or just the number of its
            workers; or the path of a YAML file that holds this.
        address: HOST:PORT. Where the server listens; for a worker or a scheduler, where its parent does. None: on
            loopback, at any free port.
        serve: where a scheduler listens for its children; None: as the tree says, or on loopback at any free port.
        node: this node's name; None: made of host and process. A scheduler's place in the tree.
        secret_file: holds the shared secret; None: it is in the environment, FEDSIM_SECRET.
        timeout: seconds of silence after which a peer counts as gone.
        join_seconds: how long the server waits for workers at the start, and a worker for a parent.
        slow_factor: a share that takes so many times as long as expected is given to another worker as well.
        share_seconds: a share that takes longer counts as slow while nobody has shown how long one takes, and a worker
            with data of its own that takes longer is given up once others have answered.
    """

    name: str = "inprocess"
    num_workers: int | None = None
    tree: Any = None
    address: str | None = None
    serve: str | None = None
    node: str | None = None
    secret_file: str | None = None
    timeout: float = 30.0
    join_seconds: float = 300.0
    slow_factor: float = 3.0
    share_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if self.name not in ("inprocess", "torch_distributed"):
            raise ValueError(f"transport.name must be inprocess or torch_distributed, got {self.name!r}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"transport.num_workers must be at least 1, got {self.num_workers}")
        for name in ("timeout", "join_seconds", "share_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"transport.{name} must be positive, got {getattr(self, name)}")
        if not self.slow_factor > 1:
            raise ValueError(f"transport.slow_factor must be above 1, got {self.slow_factor}")


@dataclass(frozen=True, kw_only=True)
class DeploymentConfig:
    """What a worker that holds data of its own decides for itself (docs/deployment.md).

    Attributes:
        prefix: put before the names of its clients, which must differ from all others'.
        evaluate: take part when the server asks for metrics; False: decline.
    """

    prefix: str = ""
    evaluate: bool = True
