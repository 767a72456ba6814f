"""The settings of a run: frozen dataclasses that are also Hydra's schema. Each says what is wrong and how to mend it.

Nothing is imported here but the standard library, so that the command line answers at once, and so that every other
module may use these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A factor on a learning rate that changes from round to round; a function of the round alone.

    Attributes:
        kind: "constant"; "step" (times `factor` after every `every` rounds); "cosine" (from 1 down to `factor` over
            `num_rounds` rounds, then constant; Loshchilov and Hutter 2017, without restarts); "inverse"
            (1 / (1 + factor * (round - 1))).
        factor: see `kind`.
        every: rounds between the drops of "step".
        num_rounds: length of "cosine"; a number of its own, for a resumed run may have another `server.num_rounds`.
        warmup_rounds: rounds before, in which the factor rises linearly from 1 / (warmup_rounds + 1); `kind` begins
            behind them.
    """

    kind: str = "constant"
    factor: float = 0.1
    every: int = 100
    num_rounds: int = 100
    warmup_rounds: int = 0

    def __post_init__(self) -> None:
        kinds = ("constant", "step", "cosine", "inverse")
        if self.kind not in kinds:
            raise ValueError(f"schedule.kind={self.kind!r} does not exist; choose one of {', '.join(kinds)}")
        if not self.factor >= 0:
            raise ValueError(f"schedule.factor must not be negative, got {self.factor}")
        for name, least in (("every", 1), ("num_rounds", 1), ("warmup_rounds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"schedule.{name} must be at least {least}, got {getattr(self, name)}")

    def at(self, round: int) -> float:
        """The factor of a round, from 1."""
        if round <= self.warmup_rounds:
            return round / (self.warmup_rounds + 1)
        done = round - self.warmup_rounds - 1
        if self.kind == "step":
            return self.factor ** (done // self.every)
        if self.kind == "cosine":
            share = min(1.0, done / self.num_rounds)
            return self.factor + (1 - self.factor) * (1 + math.cos(math.pi * share)) / 2
        if self.kind == "inverse":
            return 1 / (1 + self.factor * done)
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """The local optimizer, with the meaning of torch.optim and of `torch.nn.utils.clip_grad_norm_`.

    What an optimizer keeps, momentum for one, starts at zero for each client in every round.

    Attributes:
        num_epochs: passes over the client's samples; ignored when num_steps is set.
        num_steps: minibatch updates, over as many passes as that takes; None: num_epochs decides.
        batch_size: samples in a minibatch; the last one of a pass may be smaller and is kept. None: all of the
            client's samples in one.
        optimizer: "sgd", "adam", "adamw" or "adagrad".
        straggler_share: probability that a client, in a round, gets through only a part of its steps: a number of
            epochs that is uniform in 1 ... num_epochs - 1, or of steps in 1 ... num_steps - 1 (the partial work of
            Li et al. 2020, "Federated Optimization in Heterogeneous Networks").
        learning_rate: eta.
        momentum: of SGD (dampening 0); 0 for none.
        nesterov: Nesterov's momentum, of SGD.
        weight_decay: added to the gradient as weight_decay * parameters; AdamW's is decoupled from it.
        max_gradient_norm: gradients of a larger Euclidean norm are scaled down to it; None: no clipping.
        beta1, beta2, epsilon: of Adam and AdamW; Adagrad has epsilon alone.
        schedule: of the learning rate.
    """

    num_epochs: int = 1
    num_steps: int | None = None
    batch_size: int | None = 10
    straggler_share: float = 0.0
    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    max_gradient_norm: float | None = None
    optimizer: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"local.{name} must be at least 1, got {value}")
        if not self.learning_rate >= 0:
            raise ValueError(f"local.learning_rate must not be negative, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"local.momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.straggler_share <= 1:
            raise ValueError(f"local.straggler_share must be in [0, 1], got {self.straggler_share}")
        if self.straggler_share and (self.num_epochs if self.num_steps is None else self.num_steps) < 2:
            raise ValueError("local.straggler_share needs local.num_epochs or local.num_steps of at least 2")
        optimizers = ("sgd", "adam", "adamw", "adagrad")
        if self.optimizer not in optimizers:
            raise ValueError(
                f"local.optimizer={self.optimizer!r} does not exist; choose one of {', '.join(optimizers)}"
            )
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"local.momentum and local.nesterov are of local.optimizer=sgd, not of {self.optimizer}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"local.{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.epsilon > 0:
            raise ValueError(f"local.epsilon must be positive, got {self.epsilon}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("local.nesterov needs local.momentum > 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"local.weight_decay must not be negative, got {self.weight_decay}")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(f"local.max_gradient_norm must be positive or null, got {self.max_gradient_norm}")

    def at(self, round: int) -> "LocalConfig":
        """These settings with the learning rate of a round, from 1."""
        return replace(self, learning_rate=self.learning_rate * self.schedule.at(round))


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How long a run is, and how often it looks at itself.

    Attributes:
        num_rounds: rounds in total, those before a resume included.
        clients_per_round: a count (integer) or a fraction of all clients (a float up to 1.0).
        evaluate_every: rounds between evaluations on the test set; 0: only after the last round.
        over_selection: so many times the clients of a round are asked, and the first ones to report count; it needs
            devices.
        deadline: virtual seconds after which a round ends with those who have reported; None: it waits. It needs
            devices.
        partial_work: who is still at work when the deadline comes near sends the steps that it has taken by then (Li et
            al. 2020, "Federated Optimization in Heterogeneous Networks", section 3.2), in the place of nothing.
        num_groups: hierarchical FedAvg's groups; client c belongs to group c modulo num_groups.
        group_rounds: rounds of a group among itself before each global round; 1: plain rounds, without groups.
        schedule: of the server's learning rate: a factor on how far a round moves the global parameters.
        stop_at_accuracy: end the run once the test accuracy, in [0, 1], is this high; None: go on.
        patience: end the run after this many evaluations without a better test accuracy; None: go on.
    """

    num_rounds: int = 100
    clients_per_round: int | float = 10
    evaluate_every: int = 10
    over_selection: float = 1.0
    deadline: float | None = None
    partial_work: bool = False
    num_groups: int = 1
    group_rounds: int = 1
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stop_at_accuracy: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if not self.over_selection >= 1:
            raise ValueError(f"server.over_selection must be at least 1, got {self.over_selection}")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"server.deadline must be positive or null, got {self.deadline}")
        if self.partial_work and self.deadline is None:
            raise ValueError("server.partial_work has no effect without server.deadline, before which it is sent")
        if self.num_rounds < 1:
            raise ValueError(f"server.num_rounds must be at least 1, got {self.num_rounds}")
        if self.evaluate_every < 0:
            raise ValueError(f"server.evaluate_every must be 0 (only at the end) or more, got {self.evaluate_every}")
        for name in ("num_groups", "group_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_groups > 1 and self.group_rounds == 1:
            raise ValueError(
                "server.num_groups has no effect with server.group_rounds=1; set group_rounds to 2 or more"
            )
        if self.stop_at_accuracy is not None and not 0 < self.stop_at_accuracy <= 1:
            raise ValueError(f"server.stop_at_accuracy must be in (0, 1] or null, got {self.stop_at_accuracy}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"server.patience must be at least 1 or null, got {self.patience}")
        if self.stops_early and self.evaluate_every == 0:
            raise ValueError("server.stop_at_accuracy and server.patience need server.evaluate_every of 1 or more")

    @property
    def stops_early(self) -> bool:
        """Whether the run may end before its last round."""
        return self.stop_at_accuracy is not None or self.patience is not None

    def stop(self, accuracies: Sequence[float]) -> str | None:
        """Why a run ends after evaluations with these test accuracies: "target", "patience", or None: it goes on."""
        if self.stop_at_accuracy is not None and accuracies and accuracies[-1] >= self.stop_at_accuracy:
            return "target"
        if self.patience is not None and len(accuracies) > self.patience:
            best = max(accuracies)
            if len(accuracies) - 1 - accuracies.index(best) >= self.patience:
                return "patience"
        return None


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
            last round always uses all.
        clients: after the last round, evaluate the global model on every client and write clients.csv.
    """

    max_samples: int | None = None
    clients: bool = True

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"evaluate.max_samples must be at least 1 or null, got {self.max_samples}")


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
        progress: the progress bar; False: plain lines; None: the bar in a terminal, lines elsewhere.
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

    def __post_init__(self) -> None:
        if self.name not in ("inprocess", "torch_distributed"):
            raise ValueError(f"transport.name must be inprocess or torch_distributed, got {self.name!r}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"transport.num_workers must be at least 1, got {self.num_workers}")
        for name in ("timeout", "join_seconds"):
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


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run, as composed from conf/. The dictionaries are `_target_` factories with their arguments.
    `transforms` has one of them for each name, in the order in which they change an update; no `attack` and no
    `devices` is none.

    Attributes:
        name: of the experiment; part of the run directory's path.
        seed: of everything that is drawn.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        role: of this process: "local" (a whole run), or one node of a run: "server", "scheduler", "worker".
    """

    name: str = "fedsim"
    role: str = "local"
    seed: int = 0
    device: str = "auto"
    data: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)
    aggregator: dict[str, Any] = field(default_factory=dict)
    transforms: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    local: LocalConfig = field(default_factory=LocalConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    client_state: ClientStateConfig = field(default_factory=ClientStateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    deployment: DeploymentConfig = field(default_factory=DeploymentConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.role not in ("local", "server", "scheduler", "worker"):
            raise ValueError(f"role must be local, server, scheduler or worker, got {self.role!r}")
        if self.role == "local" and self.transport.name == "inprocess":
            for name in ("num_workers", "tree", "address"):
                if getattr(self.transport, name) is not None:
                    raise ValueError(f"transport.{name} has no effect in one process; add transport=torch_distributed")
