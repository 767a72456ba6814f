"""What an asynchronous algorithm states beside its record: when the server steps, and what an old update is worth.

Staleness s is the number of steps that the server has made since the client got its model. The three functions of it
are those of Xie et al. 2019, "Asynchronous Federated Optimization", section 5.2.
"""

from collections.abc import Callable
from dataclasses import dataclass

Staleness = Callable[[int], float]
"""s -> a factor on the update, 1 for s = 0."""


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """How an asynchronous server takes updates.

    Attributes:
        buffer_size: updates that the server waits for before it steps.
        staleness: what an update is worth.
        mixing: a of FedAsync: the model moves this share of the way to the client's model. None: the server steps along
            the mean of the buffered updates, as FedBuff does.
    """

    buffer_size: int
    staleness: Staleness
    mixing: float | None = None

    def __post_init__(self) -> None:
        if self.buffer_size < 1:
            raise ValueError(f"algorithm.buffer_size must be at least 1, got {self.buffer_size}")
        assert self.mixing is None or self.buffer_size == 1, "models are mixed one at a time"


def staleness_function(name: str, *, exponent: float, slope: float, delay: float) -> Staleness:
    """One of three functions of staleness by name.

    Args:
        name: "constant" (1), "polynomial" ((s + 1)^-exponent), or "hinge" (1 up to `delay`, behind it
            1 / (slope (s - delay) + 1)).
        exponent, slope, delay: a; a and b of the paper. Not negative.
    """
    for key, value in (("exponent", exponent), ("slope", slope), ("delay", delay)):
        if not value >= 0:
            raise ValueError(f"algorithm.{key} must not be negative, got {value}")
    functions: dict[str, Staleness] = {
        "constant": lambda s: 1.0,
        "polynomial": lambda s: (s + 1.0) ** -exponent,
        "hinge": lambda s: 1.0 if s <= delay else 1.0 / (slope * (s - delay) + 1.0),
    }
    if name not in functions:
        raise ValueError(f"algorithm.staleness={name!r} does not exist; choose one of {', '.join(functions)}")
    return functions[name]
