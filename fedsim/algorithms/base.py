"""What an algorithm is: a frozen record of functions over vectors. The defaults are FedAvg.

An algorithm states its difference from FedAvg and nothing else. It never learns what a layer is, how many clients
train side by side, or where they run: its hooks see K clients as matrices with a row for each, and K = 1 is the serial
trainer. A hook must treat rows alike and apart, so that a client's result does not depend on its neighbours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.asynchronous import Asynchronous
from fedsim.config import LocalConfig
from fedsim.vector import FlatModel, Layout

_WEIGHT_GRID = float(1 << 20)
# Elements that the mean is converted and added in.
_PART = 1 << 20

ServerState = dict[str, Tensor]
"""Vectors that the server keeps from round to round, by name; they are part of a checkpoint."""

Size = int | Literal["parameters", "model", "personal"]
"""Length of a vector: a number, P, P + Q, or the number of elements that `Algorithm.personal` marks."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A vector that every client keeps from round to round.

    Attributes:
        size: its length.
        start: what a client that has not kept anything yet begins with: this number everywhere, or the global model
            as it is in the round in which the client trains first ("model"; then the size is "parameters", "model"
            or "personal").
    """

    size: Size = "parameters"
    start: float | Literal["model"] = 0.0


@dataclass(kw_only=True, eq=False)
class Clients:
    """K clients in training, as a hook sees them: (K, ...) tensors with a row for each, to be changed in place.

    Attributes:
        model: (K, P) the parameters.
        buffers: (K, Q) the running statistics.
        start: (P,) the parameters of the global model.
        start_buffers: (Q,) its running statistics.
        server: the server's vectors that the algorithm broadcasts, by name, shared by all clients: not to be changed.
        vectors: (K, size) the vectors in `Algorithm.keeps` and `Algorithm.works`, by name.
        personal: (P + Q,) bool, what `Algorithm.personal` marks; None without it.
        clients: (K,) int64 on the host: who they are.
        samples: (K, 1) training samples of each client.
        steps: (K, 1) local steps that each client takes in this round.
        taken: (K, 1) steps it has taken before this one.
        counts: (K, 1) samples in this step's minibatch.
        local: the settings of local training in this round.
    """

    model: Tensor
    buffers: Tensor
    start: Tensor
    start_buffers: Tensor
    server: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    personal: Tensor | None
    clients: np.ndarray
    samples: Tensor
    steps: Tensor
    taken: Tensor
    counts: Tensor
    local: LocalConfig
    compute: Callable[[Tensor | str | None, tuple[int, int] | None], tuple[Tensor, Tensor]]
    move: Callable[[Tensor, str, Tensor | None, str, float | None], None]

    @property
    def learning_rate(self) -> float:
        """The local one of this round, eta."""
        return self.local.learning_rate

    def gradient(self, at: Tensor | str | None = None, part: tuple[int, int] | None = None) -> Tensor:
        """(K, P) a fresh tensor: the gradient of the minibatch's mean loss.

        Args:
            at: where. None: at `model`; a name: at this one of `vectors`; else at parameters (K, P) or (P,). Running
                statistics move where the vector has them: in `buffers`, or in a named vector of size "model".
            part: (j, m): over the samples j, j + m, j + 2m ... of the minibatch alone, for algorithms that need m
                independent minibatches. A minibatch with no such sample gives its part 0 instead.
        """
        return self.compute(at, part)[1]

    def loss(self, at: Tensor | str | None = None, part: tuple[int, int] | None = None) -> Tensor:
        """(K, 1) the mean loss of the minibatch; see `gradient`."""
        return self.compute(at, part)[0]

    def loss_and_gradient(self, at: Tensor | str | None = None) -> tuple[Tensor, Tensor]:
        """Both, for the price of the gradient."""
        return self.compute(at, None)

    def descend(
        self,
        direction: Tensor,
        of: str = "model",
        *,
        only: Tensor | None = None,
        optimizer: str = "",
        learning_rate: float | None = None,
    ) -> None:
        """One step of the local optimizer along `direction` (K, P), which it may overwrite.

        Args:
            direction: the gradient, as the algorithm wants it.
            of: what moves: "model" or one of `vectors`.
            only: bool, broadcastable to (K, P): the elements that move; the others, and their momentum, stay.
            optimizer: a name, if one vector has several optimizers; each has a momentum of its own.
            learning_rate: None: the local one of this round.
        """
        self.move(direction, of, only, optimizer, learning_rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What is known when a run starts.

    Attributes:
        num_parameters: P.
        sizes: (C,) training samples of each client.
        draw: i -> (P + Q,) another initial model, drawn as the first one was.
    """

    num_parameters: int
    sizes: np.ndarray
    draw: Callable[[int], Tensor]

    @property
    def num_clients(self) -> int:
        return len(self.sizes)


@dataclass(kw_only=True, eq=False)
class Round:
    """What the server knows when a round's clients have finished.

    Attributes:
        number: the round, from 1.
        num_parameters: P, where the running statistics begin in the vector and in the mean.
        sums: weighted means, of the mean's dtype, of the vectors in `Algorithm.sums`, by name.
        train_loss: mean loss over the samples seen, each before its step; None in a private run, where the model must
            not follow what carries no noise.
        weight: sum of the weights of the clients that trained; with central privacy of those that were expected.
        total: gives the sum of the weights of all clients, sampled or not.
    """

    number: int
    num_parameters: int
    sums: Mapping[str, Tensor]
    train_loss: float | None
    weight: float
    total: Callable[[], float]

    @cached_property
    def share(self) -> float:
        """The weight of this round's clients in that of all: |S| / N where all clients weigh the same."""
        return self.weight / self.total()


def _server_init(vector: Tensor, setup: Setup) -> ServerState:
    return {}


def _server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
    # in parts: a sum of mixed precisions would allocate four models on a CPU, and a mean of the model's precision one
    for part, moved in zip(vector.split(_PART), mean.split(_PART), strict=True):
        part.add_(moved.to(part.dtype))
    return state


def step_server(algorithm: "Algorithm", vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
    """`Algorithm.server_step`.

    Raises:
        ValueError: it gives no dictionary of vectors.
    """
    after = algorithm.server_step(vector, mean, state, round)
    if not isinstance(after, Mapping):
        raise ValueError(
            f"algorithm={algorithm.name}: server_step must return what the server keeps, a dictionary of vectors, and "
            f"returned {after!r}: end it with `return state`"
        )
    return after


def equal_weights(clients: np.ndarray, samples: np.ndarray, server: Mapping[str, Tensor]) -> np.ndarray:
    """Every client with samples weighs the same."""
    return np.ones(len(clients))


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A federated algorithm as its differences from FedAvg.

    Attributes:
        name: as in the configuration.
        begin: called when clients start, after `vectors` have been filled and `model` is the global one.
        step: one local step: computes gradients and moves what it wants to move. None: the local optimizer steps
            along the gradient, which lets a trainer fuse the two and keep linear layers as factors.
        finish: called when clients have taken their steps, with their updates (K, P + Q), local minus global, which
            it may change in place; returns the vectors in `sums`, (K, size) by name. What it leaves in the vectors of
            `keeps` is kept.
        keeps: vectors that every client keeps from round to round.
        works: vectors that a client has during a round, zero at its start.
        sums: vectors that are averaged with the updates, with the same weights.
        broadcast: vectors of the server's state that clients see.
        personal: model -> (P + Q,) bool: the elements that stay with each client. They are kept as the vector
            "personal", which must be in `keeps`, replace the global ones when a client starts, and move no average.
        weights: (clients (m,), samples (m,), broadcast vectors) -> (m,) float64 positive weights in the average,
            which are rounded up to a multiple of 2^-20; None: the samples.
        own: a record whose `begin`, `step`, `finish` and `works` make a client's own model, for evaluation, from the
            global one and what the client keeps; nothing of it is kept. None with `personal`: the kept elements in
            the place of the global ones. None without it: clients have no model of their own.
        own_steps: minibatches of training samples on which `own` takes a step; None: those of one pass.
        prelude: a record whose `begin`, `step`, `finish` and `sums` make a first pass over the same cohort's samples
            in each round, and whose `server_step` sees the result; it keeps and broadcasts what this record does.
        server_init: (vector, setup) -> the vectors that the server keeps.
        server_step: (vector, mean, state, round) -> state. Moves the global `vector` (P + Q,) in place by the mean
            update (P + Q,) of the round: float64, or float32 where `aggregator.dtype` says so, but not asynchronously.
        asynchronous: when an asynchronous server steps; None: in rounds, when the whole cohort has trained.
    """

    name: str
    begin: Callable[[Clients], None] | None = None
    step: Callable[[Clients], None] | None = None
    finish: Callable[[Clients, Tensor], Mapping[str, Tensor]] | None = None
    keeps: Mapping[str, Kept] = field(default_factory=dict)
    works: Mapping[str, Size] = field(default_factory=dict)
    sums: Mapping[str, Size] = field(default_factory=dict)
    broadcast: Mapping[str, Size] = field(default_factory=dict)
    personal: Callable[[FlatModel], Tensor] | None = None
    weights: Callable[[np.ndarray, np.ndarray, Mapping[str, Tensor]], np.ndarray] | None = None
    own: "Algorithm | None" = None
    own_steps: int | None = 0
    prelude: "Algorithm | None" = None
    server_init: Callable[[Tensor, Setup], ServerState] = _server_init
    server_step: Callable[[Tensor, Tensor, ServerState, Round], ServerState] = _server_step
    asynchronous: Asynchronous | None = None

    @property
    def hooked(self) -> bool:
        """Whether clients do anything but plain local training."""
        return not (self.begin is None and self.step is None and self.finish is None and not self.keeps)

    @property
    def personalised(self) -> bool:
        """Whether clients have models of their own."""
        return self.own is not None or self.personal is not None


def client_weights(
    algorithm: Algorithm, layout: Layout, clients: np.ndarray, samples: np.ndarray, broadcast: Tensor
) -> np.ndarray:
    """(m,) float64 weights of clients with these samples, given what the server broadcasts (P + Q + ...,)."""
    names = lengths(algorithm.broadcast, layout.num_parameters, layout.size)
    return weigh(algorithm, clients, samples, split(broadcast[layout.size :], names))


def weigh(algorithm: Algorithm, clients: np.ndarray, samples: np.ndarray, server: Mapping[str, Tensor]) -> np.ndarray:
    """(m,) float64 weights, in steps of 2^-20: their sums are exact, and so do not depend on the order of clients."""
    if algorithm.weights is None:
        return samples.astype(np.float64)
    return np.ceil(algorithm.weights(clients, samples, server) * _WEIGHT_GRID) / _WEIGHT_GRID


def update_size(record: Algorithm, layout: Layout) -> int:
    """Length of what is averaged: the update (P + Q,) and behind it the vectors in `sums`."""
    return layout.size + sum(lengths(record.sums, layout.num_parameters, layout.size).values())


def lengths(sizes: Mapping[str, Size], num_parameters: int, size: int, num_personal: int = 0) -> dict[str, int]:
    """Lengths of named vectors, for a model of P parameters and P + Q = `size` elements."""
    known = {"parameters": num_parameters, "model": size, "personal": num_personal}
    return {name: s if isinstance(s, int) else known[s] for name, s in sizes.items()}


def split(joined: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """(..., sum of sizes) to views (..., size) by name, in the order of `sizes`."""
    return dict(zip(sizes, torch.split(joined, list(sizes.values()), dim=-1), strict=True))
