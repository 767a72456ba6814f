"""What an algorithm is: a frozen record of pure functions over vectors. The defaults are FedAvg.

An algorithm states its difference from FedAvg and nothing else. It never learns what a layer is, how many clients
train side by side, or where they run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.asynchronous import Asynchronous

ServerState = dict[str, Tensor]
"""Vectors that the server keeps from round to round, by name; they are part of a checkpoint."""


def _server_init(vector: Tensor) -> ServerState:
    return {}


def _server_step(vector: Tensor, mean: Tensor, state: ServerState) -> ServerState:
    vector.add_(mean.to(vector.dtype))  # a sum of mixed precisions would allocate four models on a CPU
    return state


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A federated algorithm as its differences from FedAvg.

    Attributes:
        name: as in the configuration.
        gradient: (gradient, local, broadcast) -> the gradient that the local optimizer steps along. All are
            (P,) for one client or (K, P) for K clients side by side (`broadcast` stays (P,)). None: the
            gradient of the minibatch as it is, which lets a trainer fuse gradient and update.
        server_init: vector -> the vectors that the server keeps.
        server_step: (vector, mean, state) -> state. Moves the global `vector` (P + Q,) in place by the mean
            update (P + Q,) float64 of the round.
        asynchronous: when an asynchronous server steps; None: in rounds, when the whole cohort has trained.
    """

    name: str
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    server_init: Callable[[Tensor], ServerState] = _server_init
    server_step: Callable[[Tensor, Tensor, ServerState], ServerState] = _server_step
    asynchronous: Asynchronous | None = None
