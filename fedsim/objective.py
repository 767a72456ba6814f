"""What is minimised and what is measured: per-sample functions of a model's outputs and the targets.

A sequence has a target at each of its places, and `IGNORED` where there is nothing to predict (behind the end of a
short text): such a place is no part of the loss, of its gradient, of the accuracy or of the number of places.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The target of a place in a sequence that does not count, by PyTorch's convention."""

PerSample = Callable[[Tensor, Tensor], Tensor]
"""(outputs of a minibatch (B, ...), its targets (B, ...)) -> a number for each sample, (B,)."""

_TAKES = {
    "classes": "classes, numbered in int64",
    "numbers": "numbers, as float32",
    "labels": "zeros and ones, one for each label",
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a client minimises on its samples, and what else a model is judged by.

    Called with outputs (B, ...) and targets (B, ...) it gives the losses (B,).

    Attributes:
        name: as in the configuration.
        losses: what is minimised is their mean over a minibatch; any loss of `torch.nn` with reduction="none" whose
            values are (B,) will do. Samples must not meet in it.
        metrics: by name, what is measured beside it, in rows `test_<name>` and columns `<name>`. Where there is an
            "accuracy", it says which model is the best one; else the loss does.
        targets: "classes" (integers from 0, or -100), "numbers" (float32) or "labels" (any of several, each 0.0 or
            1.0, of the outputs' dtype).

    Raises:
        ValueError: no such targets, no functions, or a metric with the name of another figure.
    """

    name: str
    losses: PerSample
    metrics: Mapping[str, PerSample] = field(default_factory=dict)
    targets: str = "classes"

    def __post_init__(self) -> None:
        if self.targets not in _TAKES:
            raise ValueError(f"an objective's targets are {', '.join(_TAKES)}, not {self.targets!r}")
        if not isinstance(self.metrics, Mapping) or not all(
            callable(of) for of in (self.losses, *self.metrics.values())
        ):
            raise ValueError(
                f"{self.name}: losses is a function, and metrics are functions by name, {{'right': right}}"
            )
        for name in self.metrics:
            taken = name in ("loss", "client", "split", "samples", "round", "places", "clients")
            if taken or not str(name).isidentifier() or str(name).startswith("global_"):
                raise ValueError(f"{name!r} cannot be a metric's name: choose a word that is no other figure's")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(*self.prepared(outputs, targets))

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """(B,) each: "loss", and what else is measured."""
        outputs, targets = self.prepared(outputs, targets)
        return {name: of(outputs, targets) for name, of in {"loss": self.losses, **self.metrics}.items()}

    def prepared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `losses` and `metrics` get them: outputs of a forward pass under autocast in float32, since the eight bits
        of bfloat16 are too few for a loss, and labels, which are stored as bytes, in the outputs' dtype."""
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        return outputs, targets.to(outputs.dtype) if self.targets == "labels" else targets

    def refuse(self, targets: Tensor, where: str) -> None:
        """Raises ValueError where targets (N, ...) of the data set `where` are of another kind."""
        whole = targets.dtype in (torch.int64, torch.int32)
        if self.targets == "labels":
            fits = bool(((targets == 0) | (targets == 1)).all())
        else:
            fits = targets.is_floating_point() if self.targets == "numbers" else whole
        if not fits:
            others = "others" if self.targets == "labels" else targets.dtype
            raise ValueError(
                f"{where}: the objective {self.name} learns {_TAKES[self.targets]}, but the targets are {others}: turn "
                "them into these, or choose another objective"
            )


def cross_entropy(label_smoothing: float = 0.0, top_k: int | None = None) -> Objective:
    """Cross-entropy of classes, in nats, and accuracy: outputs (B, classes) and targets (B,) int64, or of sequences
    (B, classes, length) and (B, length).

    Args:
        label_smoothing: epsilon; the class counts 1 - epsilon, and all classes together epsilon (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7). The test loss has it too.
        top_k: k; also measure `top_<k>_accuracy`, whether the class is among the k largest outputs; None: not.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing must be in [0, 1), got {label_smoothing}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"objective.top_k must be at least 1 or null, got {top_k}")
    losses = partial(class_losses, label_smoothing=label_smoothing) if label_smoothing else class_losses
    further = {} if top_k is None else {f"top_{top_k}_accuracy": partial(correct, among=top_k)}
    name = _named("cross_entropy", label_smoothing=label_smoothing or None, top_k=top_k)
    return Objective(name=name, losses=losses, metrics={"accuracy": correct, **further})


def binary_cross_entropy() -> Objective:
    """Mean over a sample's labels of the cross-entropy of each, in nats: outputs (B, L) are log-odds, targets (B, L).

    The accuracy is the share of the labels that are right, and `exact_match` whether all of a sample's are.
    """

    def right(outputs: Tensor, targets: Tensor) -> Tensor:
        found, wanted = _alike(outputs, targets)
        return ((found > 0) == (wanted > 0.5)).to(found.dtype)

    return Objective(
        name="binary_cross_entropy",
        losses=_mean_of(lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none")),
        metrics={"accuracy": lambda x, y: right(x, y).mean(1), "exact_match": lambda x, y: right(x, y).amin(1)},
        targets="labels",
    )


def squared_error() -> Objective:
    """Mean over a target's d numbers of the squared difference, in their unit squared, and `absolute_error`, in their
    unit: outputs (B, d), targets (B, d) float32, or (B,) where d is 1."""
    return Objective(
        name="squared_error",
        losses=_mean_of(lambda x, y: (x - y).square()),
        metrics={"absolute_error": _mean_of(_distance)},
        targets="numbers",
    )


def huber(delta: float = 1.0) -> Objective:
    """Huber's loss, mean over a target's d numbers, and `squared_error` and `absolute_error`: outputs (B, d), targets
    (B, d) float32, or (B,) where d is 1.

    Half the square of a difference d up to `delta`, and beyond it delta (|d| - delta / 2) (Huber 1964, "Robust
    Estimation of a Location Parameter").

    Raises:
        ValueError: `delta`, in the numbers' unit, is not positive.
    """
    if not delta > 0:
        raise ValueError(f"objective.delta must be positive, got {delta}")
    return Objective(
        name=_named("huber", delta=delta if delta != 1 else None),
        losses=_mean_of(lambda x, y: F.huber_loss(x, y, reduction="none", delta=delta)),
        metrics={"squared_error": _mean_of(lambda x, y: (x - y).square()), "absolute_error": _mean_of(_distance)},
        targets="numbers",
    )


def of_targets(targets: str) -> Objective:
    """What data are for whose targets are "classes", "numbers" or "labels".

    Raises:
        ValueError: they are something else.
    """
    usual = {"classes": cross_entropy, "numbers": squared_error, "labels": binary_cross_entropy}
    if targets not in usual:
        raise ValueError(f"data.targets must be {', '.join(usual)}, got {targets!r}")
    return usual[targets]()


def _named(name: str, **options: float | None) -> str:
    """With the options that are not the usual ones, for they are what a run is known by."""
    told = ", ".join(f"{option}={value:g}" for option, value in options.items() if value is not None)
    return f"{name}({told})" if told else name


def chosen(objective: object) -> Objective:
    """This objective; cross-entropy for None.

    Raises:
        ValueError: it is something else, such as a factory in the place of what it makes.
    """
    if objective is None:
        return cross_entropy()
    if not isinstance(objective, Objective):
        given = getattr(objective, "__name__", type(objective).__name__)
        raise ValueError(f"objective must be an Objective, for example objective=squared_error(); got {given}")
    return objective


def class_losses(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample, in nats: (B, classes) and (B,), or (B, classes, length) and (B, length), to (B,).

    The loss of a sequence is the mean over its places that count, 0 where none does.

    Raises:
        ValueError: there are not as many outputs as targets.
    """
    if outputs.dim() != targets.dim() + 1:
        places = "one target" if targets.dim() == 1 else f"targets of shape {tuple(targets.shape[1:])}"
        raise ValueError(
            f"the data has {places} a sample, but the model's output for a minibatch has shape {tuple(outputs.shape)}: "
            "choose another model (reddit_lstm predicts at every place, most others once a sample)"
        )
    # What F.cross_entropy computes, without its ignored index, which takes most of its operations.
    log_probabilities = F.log_softmax(outputs, 1)
    wanted = targets if targets.dim() == 1 else targets.clamp(min=0)
    losses = log_probabilities.gather(1, wanted.unsqueeze(1)).squeeze(1).neg()
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_probabilities.mean(1)
    return losses if targets.dim() == 1 else _mean_over_places(losses, targets)


def correct(outputs: Tensor, targets: Tensor, among: int = 1) -> Tensor:
    """(B,) float: whether the target is among the largest outputs; of a sequence the share of its places that count."""
    if among == 1:
        hits = outputs.argmax(1) == targets
    else:
        hits = (outputs.topk(min(among, outputs.shape[1]), 1).indices == targets.unsqueeze(1)).any(1)
    hits = hits.to(outputs.dtype)
    return hits if hits.dim() == 1 else _mean_over_places(hits, targets)


def num_places(targets: Tensor) -> Tensor:
    """(B,) int64: places of each sample that count; 1 for a sample with one target."""
    return torch.ones_like(targets) if targets.dim() == 1 else (targets != IGNORED).flatten(1).sum(1)


def _mean_over_places(values: Tensor, targets: Tensor) -> Tensor:
    counts = targets != IGNORED
    return values.masked_fill(~counts, 0.0).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)


def _distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs()


def _mean_of(each: PerSample) -> PerSample:
    """The mean of what `each` gives for the numbers of a sample."""
    return lambda outputs, targets: each(*_alike(outputs, targets)).mean(1)


def _alike(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (B, numbers), so that no (B, 1) meets a (B,) and becomes (B, B).

    Raises:
        ValueError: a sample has not as many outputs as numbers.
    """
    found, wanted = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    if found.shape != wanted.shape:
        raise ValueError(
            f"the data has {wanted.shape[1]} numbers a sample, but the model {found.shape[1]} outputs: give the model "
            "as many, which a model factory is told as num_classes"
        )
    return found, wanted.to(found.dtype)
