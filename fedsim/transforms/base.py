"""What a transform is: a frozen record of functions over stacked updates. State goes in and comes out.

A transform has a client's side, which sees each update (a row) before it is averaged, and a server's side, which sees
the mean once a round. Rows never see each other and random numbers come from (seed, purpose, round, client), so the
result does not depend on how many clients train side by side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsim.rng import torch_stream
from fedsim.vector import Layout

State = dict[str, Tensor]
"""What the server keeps for a transform from round to round; part of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What one update takes on the wire, exactly. Transforms in a row refine it one after another.

    Attributes:
        size: elements of the update, S.
        dtype_bits: bits of an element of the model.
        num_values: values that are sent.
        value_bits: bits of each of them.
        index_bytes: to say which elements they are; 0 where all are sent or where the receiver knows.
        extra_bytes: numbers sent beside the values, such as a norm.
        is_factored: the values are factors, of whose product nothing can be chosen or rounded any more.
    """

    size: int
    dtype_bits: int
    num_values: int
    value_bits: int
    index_bytes: int = 0
    extra_bytes: int = 0
    is_factored: bool = False

    @classmethod
    def dense(cls, size: int, dtype: torch.dtype) -> "Wire":
        """All elements as they are."""
        bits = 8 * dtype.itemsize
        return cls(size=size, dtype_bits=bits, num_values=size, value_bits=bits)

    def as_dense(self) -> "Wire":
        """The same update once it has been made dense again."""
        return replace(
            self, num_values=self.size, value_bits=self.dtype_bits, index_bytes=0, extra_bytes=0, is_factored=False
        )

    def remembered(self) -> "Wire":
        """The same elements as sums over several rounds, which no rounding before has left as levels."""
        return replace(self, value_bits=self.dtype_bits, extra_bytes=0)

    @property
    def is_sparse(self) -> bool:
        return self.num_values < self.size

    @property
    def num_bytes(self) -> int:
        """Values packed without gaps into whole bytes, then the rest."""
        return math.ceil(self.num_values * self.value_bits / 8) + self.index_bytes + self.extra_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Sending:
    """The rows at hand, for a transform's client side.

    Attributes:
        seed: of the run.
        round: from 1.
        purpose: names the transform's random streams.
        clients: whose rows these are.
        state: what the server keeps for this transform, as broadcast; not to be changed.
        memory: (F, num_client_vectors * S) these clients' own vectors, to be changed in place; zeros at first. None
            where the transform keeps none.
        sums: figures summed over clients (0-d tensors by name), which the server's side reads.
    """

    seed: int
    round: int
    purpose: str
    clients: list[int]
    state: State
    memory: Tensor | None
    sums: dict[str, Tensor] = field(default_factory=dict)

    def count(self, name: str, amount: Tensor) -> None:
        """Add a 0-d amount to a sum over clients."""
        amount = amount.double()
        self.sums[name] = self.sums[name] + amount if name in self.sums else amount

    def generator(self, client: int, device: torch.device) -> torch.Generator:
        """Random numbers for one client's row, drawn where it lies: a CPU and a GPU draw different ones."""
        return torch.Generator(device).manual_seed(
            torch_stream(self.seed, self.purpose, self.round, client).initial_seed()
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Closing:
    """The end of a round, for a transform's server side.

    Attributes:
        seed, round, purpose: as in `Sending`.
        cohort_size: clients a round: their number, or its expectation where it is random.
        state: what the server keeps for this transform.
        sums: what the clients' sides have counted.
        noise_multiplier: of the central noise of the run; 0 without.
        clip_norm: no row is longer than this; None where nothing bounds them.
        count_noise: standard deviation of the noise on the count of an adaptive clipping; None where there is
            no count.
    """

    seed: int
    round: int
    purpose: str
    cohort_size: float
    state: State
    sums: dict[str, float]
    noise_multiplier: float
    clip_norm: float | None
    count_noise: float | None

    def generator(self, device: torch.device) -> torch.Generator:
        """The server's random numbers of this round."""
        return torch.Generator(device).manual_seed(torch_stream(self.seed, self.purpose, self.round).initial_seed())


def _same(wire: Wire) -> Wire:
    return wire


def _no_state() -> State:
    return {}


def _keep(closing: Closing) -> State:
    return closing.state


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A change to updates.

    Attributes:
        name: as in the configuration.
        apply: the client's side: rows (F, P + Q) -> rows, and it may overwrite its argument. None: there is none.
        wire: how the update is encoded after it; raises ValueError after transforms that it cannot follow.
        num_client_vectors: vectors of an update's size that each client keeps.
        server_init: -> what the server keeps.
        server_step: closing -> what the server keeps for the next round.
        finish: (mean (P + Q,) of `aggregator.dtype`, closing) -> mean: the server's side.
        bound: state -> the Euclidean norm that no row exceeds after `apply`. None: it bounds nothing.
        noise_multiplier: standard deviation of the noise on the sum of updates, in units of the bound; not 0 makes
            the run centrally differentially private: all clients count the same.
        count_noise: (cohort_size, noise_multiplier) -> standard deviation of the noise on a count of clients that the
            server uses beside the sum. None: it uses no count.
        local_noise_multiplier: as `noise_multiplier`, of the noise on each row.
        delta: of (epsilon, delta); None: C ** -1.1 for C clients.
        scatters: whether it may move an element further than the client has, or the other way: a running variance may
            then become negative.
        figures: (state, sums) -> metrics of the round.
        fit: layout -> this transform for the model of that layout, where it needs to know where tensors lie; it is
            used in the place of this one. None: it does not.
    """

    name: str
    apply: Callable[[Tensor, Sending], Tensor] | None = None
    wire: Callable[[Wire], Wire] = _same
    num_client_vectors: int = 0
    server_init: Callable[[], State] = _no_state
    server_step: Callable[[Closing], State] = _keep
    finish: Callable[[Tensor, Closing], Tensor] | None = None
    bound: Callable[[State], float] | None = None
    noise_multiplier: float = 0.0
    count_noise: Callable[[float, float], float] | None = None
    local_noise_multiplier: float = 0.0
    delta: float | None = None
    scatters: bool = False
    figures: Callable[[State, dict[str, float]], dict[str, float]] = lambda state, sums: {}
    fit: "Callable[[Layout], Transform] | None" = None
