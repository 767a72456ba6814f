"""How many samples each client gets, and random samples in those numbers.

- `iid`: McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017,
  section 3; with sizes that are not equal it is the quantity skew of the field:
- `LogNormal`: FedLab's unbalanced partition (Zeng et al. 2023), after the FedDyn experiments of Acar et al., ICLR 2021;
- `DirichletSizes`: NIID-Bench's quantity skew, q ~ Dir(beta) (Li, Diao, Chen, He, ICDE 2022, section 4.3);
- `Power` and `Exponential`: the linear, square and exponential partitioners of Flower Datasets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim.data.deal.base import Deal, at_most, even_bounds, offsets_of


class SizeLaw(Protocol):
    """Clients' sizes up to a factor, and the least size of a client."""

    min_samples: int

    def weights(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """(C,) float64, not negative, not all zero."""
        ...


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Sizes in proportion to exp(sigma z), z ~ N(0, 1): LogN(log(N / C), sigma) scaled to N samples."""

    sigma: float = 1.0
    min_samples: int = 1

    def __post_init__(self) -> None:
        _check_law(self.min_samples, "sigma", self.sigma, zero=True)

    def weights(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        return _exp(self.sigma * rng.standard_normal(num_clients))


@dataclass(frozen=True, kw_only=True)
class DirichletSizes:
    """Sizes in proportion to a draw from the symmetric Dirichlet distribution with this concentration."""

    alpha: float = 0.5
    min_samples: int = 1

    def __post_init__(self) -> None:
        _check_law(self.min_samples, "alpha", self.alpha)

    def weights(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        # Beyond these bounds the law is at its limits (one client, even shares), but the draw would overflow.
        return rng.dirichlet(np.full(num_clients, np.clip(self.alpha, 1e-100, 1e100)))


@dataclass(frozen=True, kw_only=True)
class Power:
    """Client c, from 1, in proportion to c ** exponent: 1 is linear, 2 square."""

    exponent: float = 1.0
    min_samples: int = 1

    def __post_init__(self) -> None:
        _check_law(self.min_samples, "exponent", self.exponent, zero=True)

    def weights(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        if self.exponent in (0, 1, 2):  # exact
            return np.arange(1, num_clients + 1, dtype=np.float64) ** int(self.exponent)
        return _exp(self.exponent * np.array([math.log(c) for c in range(1, num_clients + 1)]))


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """Each client larger than the one before by the same factor; the last is `ratio` times the first.

    Flower's fixes that factor at e, so that 20 clients differ by e^19 = 1.8e8: `ratio` keeps its meaning for any
    number of clients.
    """

    ratio: float = 100.0
    min_samples: int = 1

    def __post_init__(self) -> None:
        _check_law(self.min_samples, "ratio", self.ratio)

    def weights(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        return _exp(math.log(self.ratio) * np.arange(num_clients) / max(1, num_clients - 1))


def equal_sizes(num_samples: int, num_clients: int, *, recipe: str) -> np.ndarray:
    """(C,) int64: sizes that differ by at most one and add up to N.

    Raises:
        ValueError: there are more clients than samples.
    """
    if num_clients > num_samples:
        raise ValueError(
            f"partition={recipe} cannot give each of {num_clients} clients one of {num_samples} samples: "
            f"set partition.num_clients to at most {num_samples}"
        )
    return np.diff(even_bounds(num_samples, num_clients))


def client_sizes(
    sizes: Sequence[int] | SizeLaw | None,
    num_samples: int,
    num_clients: int,
    rng: np.random.Generator,
    *,
    recipe: str,
) -> tuple[np.ndarray, dict[str, int]]:
    """How many samples each client gets.

    Args:
        sizes: None for equal ones, a law, or one positive number for each client.
        num_samples: N.
        num_clients: C.
        rng: source of a law's randomness; the others draw nothing.
        recipe: for messages.

    Returns:
        (C,) int64, which add up to N unless given sizes add up to less; and the facts "num_raised" (clients that the
        law gave fewer than `min_samples`, and that got so many; the others share the rest in the law's proportions)
        and "num_left_out", where they are not 0.

    Raises:
        ValueError: there are too few samples, or given sizes do not fit the number of clients.
    """
    if sizes is None:
        return equal_sizes(num_samples, num_clients, recipe=recipe), {}
    if not isinstance(sizes, Sequence):
        least = sizes.min_samples
        if num_clients * least > num_samples:
            changes = at_most("num_clients", num_samples // least)
            changes += at_most("sizes.min_samples", num_samples // num_clients)
            raise ValueError(
                f"partition={recipe} cannot give {num_clients} clients at least {least} samples each: the data "
                f"has {num_samples}; {' or '.join(changes) or 'the data has too few samples'}"
            )
        drawn, num_raised = apportion(sizes.weights(num_clients, rng), num_samples, least)
        return drawn, {"num_raised": num_raised} if num_raised else {}
    given = np.array(sizes, dtype=np.int64)
    if len(given) != num_clients:
        raise ValueError(
            f"partition.sizes has {len(given)} sizes for partition.num_clients={num_clients}: "
            f"set partition.num_clients={len(given)}, or give one size for each client"
        )
    left_out = num_samples - int(given.sum())
    if left_out < 0:
        raise ValueError(f"partition.sizes add up to {given.sum()}, but the data has {num_samples} samples")
    return given, {"num_left_out": left_out} if left_out else {}


def iid(
    targets: np.ndarray, num_clients: int, rng: np.random.Generator, *, sizes: Sequence[int] | SizeLaw | None = None
) -> Deal:
    """Shuffle the samples and cut them into the clients' sizes.

    Args:
        targets: (N, ...), of which only the length counts.
        num_clients: at most N.
        rng: source of all randomness.
        sizes: None for sizes that differ by at most one; else as in `client_sizes`.

    Raises:
        ValueError: there are more clients than samples, or the sizes do not fit.
    """
    counts, facts = client_sizes(sizes, len(targets), num_clients, rng, recipe="iid")
    offsets = offsets_of(counts)
    return Deal(offsets, rng.permutation(len(targets))[: offsets[-1]], facts)


def apportion(weights: np.ndarray, total: int, least: int) -> tuple[np.ndarray, int]:
    """Whole numbers in proportion to weights, each at least `least`, by the method of largest remainders.

    Clients whose share is below `least` get `least`; the others share the rest in proportion. So nothing is lost to
    rounding, and no single client bears a deficit.

    Args:
        weights: (C,) not negative, at least one positive; they are divided by their sum.
        total: at least C * least.
        least: at least 1.

    Returns:
        (C,) int64 that add up to `total`, and how many were raised.
    """
    free = np.arange(len(weights))
    tolerance = 1e-9 * least
    while True:
        left = total - least * (len(weights) - len(free))
        # The running sum is one order of additions on every machine; a zero sum can only share out evenly.
        share = np.cumsum(weights[free])[-1]
        quota = weights[free] / share * left if share > 0 else np.full(len(free), left / len(free))
        enough = quota >= least - tolerance
        if enough.all():
            break
        free = free[enough]
    whole = np.maximum(np.floor(quota).astype(np.int64), least)
    remainder = left - int(whole.sum())
    assert 0 <= remainder <= len(free)
    whole[np.argsort(whole - quota, kind="stable")[:remainder]] += 1
    sizes = np.full(len(weights), least, dtype=np.int64)
    sizes[free] = whole
    return sizes, len(weights) - len(free)


def _exp(values: np.ndarray) -> np.ndarray:
    """exp(values - their maximum), with the C library's exp: NumPy's own differs in the last bit between processors."""
    return np.array([math.exp(value) for value in (values - values.max()).tolist()])


def _check_law(min_samples: object, name: str, value: object, *, zero: bool = False) -> None:
    if isinstance(min_samples, bool) or not isinstance(min_samples, int) or min_samples < 1:
        raise ValueError(f"partition.sizes.min_samples must be a positive integer, got {min_samples!r}")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (value > 0 or (zero and value == 0)):  # pyright: ignore[reportOperatorIssue]
        kind = "a number from 0 on" if zero else "a positive number"
        raise ValueError(f"partition.sizes.{name} must be {kind}, got {value!r}")
