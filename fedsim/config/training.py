"""How a run trains: what a client does, how long the run is, and learning rates that change over its rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace


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
        if not math.isfinite(self.factor):
            raise ValueError(f"schedule.factor must be a finite number, got {self.factor}")
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
        for name in ("learning_rate", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"local.{name} must be a finite number, got {getattr(self, name)}")
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
        arrivals: the arrivals.csv of an asynchronous run over real workers, whose order is followed; None: a new order.
        num_groups: hierarchical FedAvg's groups; client c belongs to group c modulo num_groups.
        group_rounds: rounds of a group among itself before each global round; 1: plain rounds, without groups.
        schedule: of the server's learning rate: a factor on how far a round moves the global parameters.
        stop_at_accuracy: end the run once the test accuracy, in [0, 1], is this high; None: go on.
        patience: end the run after this many evaluations without a better test accuracy (a lower test loss, where no
            accuracy is measured); None: go on.
    """

    num_rounds: int = 100
    clients_per_round: int | float = 10
    evaluate_every: int = 10
    over_selection: float = 1.0
    deadline: float | None = None
    partial_work: bool = False
    arrivals: str | None = None
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

    def stop(self, scores: Sequence[float]) -> str | None:
        """Why a run ends after evaluations with these scores (test accuracies, or minus test losses where there are
        none): "target", "patience", or None: it goes on."""
        if self.stop_at_accuracy is not None and scores and scores[-1] >= self.stop_at_accuracy:
            return "target"
        if self.patience is not None and len(scores) > self.patience:
            best = max(scores)
            if len(scores) - 1 - scores.index(best) >= self.patience:
                return "patience"
        return None
