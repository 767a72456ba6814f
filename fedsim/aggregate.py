"""OnlineAverage: the weighted mean of any number of updates in the memory of one.

An update is added the moment its client finishes and is never kept. What is kept is the running sum of
weight * update, with each term rounded to a fixed grid of 2^-44 (relative to `scale`, a power of two not below the
weight of the whole cohort). Sums of grid points that stay below 2^53 grid steps are exact in float64, and exact sums
do not depend on their order: the mean is bitwise the same for any order of clients, any split over workers and any
shape of the tree. The grid is far below float32: for a cohort of total weight near `scale`, a term is off by at most
2^-45 = 2.8e-14.

The bound is 2^9 on every element of every partial sum of the mean. Updates that are shorter than 2^9 keep it in any
order. Longer ones (the first round of an unnormalised running variance, a model that diverges) may leave it, also where
they cancel in the end: the sum is then still right to float64's rounding, but its last bits may depend on the order.
`OrderWatch` says so once in a run.

A float32 sum takes half of the memory, and of what workers send. It is right to float32's rounding, which depends on
the order: results then agree with one another, and with those of a float64 sum, to rounding only.
"""

import logging
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsim.memory import give_back_memory, zeros_apart

log = logging.getLogger("fedsim")

# Elements handled at once: on a CPU, a block and its float64 temporaries stay in the processor's cache.
_BLOCK = 1 << 17
_BLOCK_CUDA = 1 << 24
# Bytes of a sum that gets pages of its own, when the pieces of the last round's memory have been given back: that takes
# a millisecond, less than a step of such a model.
_LARGE = 1 << 24
_GRID = float(1 << 44)
# Sums of whole numbers are exact below 2^53, which is a mean of 512. Where all updates are shorter than this, it stays
# below that, though their lengths are rounded to float32.
EXACT_LENGTH = 500.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientRows:
    """A vector for each of some clients, on its way from one node to another.

    Attributes:
        clients: (n,) int64, each once.
        rows: (n, size).
        weights: (n,) float64 of each in an aggregation; None: they are vectors that clients keep.
    """

    clients: np.ndarray
    rows: Tensor
    weights: np.ndarray | None = None

    def part(self, clients: np.ndarray) -> "ClientRows":
        """Those of these clients."""
        chosen = np.flatnonzero(np.isin(self.clients, clients))
        weights = None if self.weights is None else self.weights[chosen]
        return ClientRows(clients=self.clients[chosen], rows=self.rows[torch.from_numpy(chosen)], weights=weights)

    @staticmethod
    def join(several: Iterable["ClientRows"]) -> "ClientRows":
        """Those of disjoint sets of clients, at least one."""
        found = list(several)
        weights = [r.weights for r in found if r.weights is not None]
        return ClientRows(
            clients=np.concatenate([r.clients for r in found]),
            rows=torch.cat([r.rows for r in found]),
            weights=np.concatenate(weights) if weights else None,
        )


@dataclass(frozen=True, kw_only=True)
class PartialAverage:
    """The average of some clients' updates: what a trainer, a worker or a scheduler gives back.

    Attributes:
        total: (P + Q,) float64 weighted sum, in grid steps of `OnlineAverage`; merging adds these, exactly. Or float32,
            where the run says so, and merging rounds.
        weight: sum of the clients' weights.
        scale: the power of two that fixes the grid.
        metrics: sums over clients, by name (for example "loss_sum", "samples", "clients").
        rows: of a share that was trained elsewhere, by name: the clients' new vectors, and the updates that must be
            kept one by one (`fedsim.transport.carry`).
    """

    total: Tensor
    weight: float
    scale: float
    metrics: dict[str, float] = field(default_factory=dict)
    rows: Mapping[str, ClientRows] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """(P + Q,) of the total's dtype: the weighted mean of the updates."""
        return self.total * (self.scale / (_GRID * self.weight))

    def take_mean(self) -> Tensor:
        """`mean` in the place of `total`, which is used up: the last use of a partial average."""
        return self.total.mul_(self.scale / (_GRID * self.weight))


class OrderWatch:
    """Says once in a run, for what is so large in one round seldom is so in this round only, that a mean may depend on
    the order of its clients."""

    def __init__(self) -> None:
        self.said = False

    def look(self, partial: PartialAverage) -> None:
        """Look at a round's average, before its mean is taken."""
        if self.said or not partial.total.numel() or partial.total.dtype != torch.float64:
            return  # which promises nothing
        long = partial.metrics.get("long_updates", 0.0)  # where only these are so large, they have cancelled
        largest = torch.linalg.vector_norm(partial.total, math.inf).item() * partial.scale / (_GRID * partial.weight)
        if not long and largest < EXACT_LENGTH:
            return
        self.said = True
        what = f"{long:.0f} of a round's updates are" if long > 1 else "an update is" if long else "the mean update is"
        log.warning(
            f"{what} longer than {EXACT_LENGTH:.0f}, and the largest element of the mean {largest:.3g}: it is still "
            "right to rounding, but its last bits may depend on the order of the clients, so that other workers or "
            "slots may give others; normalise the inputs, or lower local.learning_rate if the model diverges"
        )


def weight_scale(total_weight: float) -> float:
    """The power of two that `OnlineAverage` needs for a cohort of this total weight."""
    if not total_weight > 0 or not math.isfinite(total_weight):
        raise ValueError(f"the clients' weights must sum to a positive number, got {total_weight}")
    return 2.0 ** math.ceil(math.log2(total_weight))


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """A matrix (out, in) as left^T right.

    Attributes:
        left: (R_i, out) pieces of the left factor, one under the other, before they are multiplied by
        coefficients: (R,) one for each row.
        right: (R, in).
    """

    left: list[Tensor]
    coefficients: Tensor
    right: Tensor

    def columns(self, start: int, stop: int) -> Tensor:
        """(R, stop - start) of the left factor: it is never whole, for it may be as large as all that came before."""
        found = [piece[:, start:stop] for piece in self.left]
        return (found[0] if len(found) == 1 else torch.cat(found)) * self.coefficients[:, None]


class OnlineAverage:
    """Weighted mean of updates, one at a time.

    Args:
        size: length of an update.
        scale: power of two, at least the weight of the whole cohort (`weight_scale`), so that partial averages of
            several workers share one grid.
        device: where the sum lies.
        dtype: of the sum, float64 or float32.
    """

    def __init__(
        self, size: int, *, scale: float, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        if size * dtype.itemsize >= _LARGE and torch.device(device).type == "cpu":
            give_back_memory()
            self.total = zeros_apart(size, dtype)
        else:
            self.total = torch.zeros(size, dtype=dtype, device=device)
        self.weight = 0.0
        self.scale = scale
        self.block = _BLOCK_CUDA if self.total.is_cuda else _BLOCK
        self.lock = threading.Lock()  # several threads may add to one average

    def _accumulate(self, start: int, terms: Tensor) -> None:
        """Add (n,) float64 grid points from element `start` on."""
        with self.lock:
            self.total[start : start + len(terms)].add_(terms)

    def _count(self, weight: float) -> None:
        with self.lock:
            self.weight += weight

    def add(self, local: Tensor, reference: Tensor, weight: float) -> Tensor:
        """Add the update `local - reference`, both (size,), and return its squared norm (0-d float32, on device).

        Nothing of the size of the model is allocated.
        """
        factor = weight / self.scale * _GRID
        starts = range(0, len(self.total), self.block)
        # the same places for every block: among new ones, what else is allocated would pin the heap's pages
        squares = local.new_empty(len(starts))
        differences = local.new_empty(min(self.block, len(self.total)))
        terms = torch.empty_like(differences, dtype=torch.float64)
        for start, square in zip(starts, squares, strict=True):
            part = slice(start, min(start + self.block, len(self.total)))
            n = part.stop - start
            difference = torch.sub(local[part], reference[part], out=differences[:n])
            torch.dot(difference, difference, out=square)
            self._accumulate(start, terms[:n].copy_(difference).mul_(factor).round_())
        self._count(weight)
        return squares.sum()

    def add_rows(self, differences: Tensor, weights: Tensor, start: int) -> None:
        """Add a part of several updates, (F, n), that begins at element `start`; `add_weight` completes them.

        `weights` (F,) float64 lies where the updates do.
        """
        factors = weights * (_GRID / self.scale)
        width = max(1, self.block // len(weights))
        for begin in range(0, differences.shape[1], width):
            part = differences[:, begin : begin + width].double().mul_(factors[:, None]).round_()
            self._accumulate(start + begin, part.sum(0))

    def add_some(self, rows: Tensor, index: Tensor, reference: Tensor, weights: Tensor, start: int) -> Tensor:
        """`add_rows` of the updates rows[index] - reference, (F, n), without writing them down.

        Returns:
            (F,) squared norms of these parts.
        """
        squares = rows.new_zeros(len(index))
        width = max(1, 2 * self.block // len(index))
        for begin in range(0, rows.shape[1], width):
            part = slice(begin, begin + width)
            difference = rows[:, part].index_select(0, index).sub_(reference[part])
            squares += torch.linalg.vector_norm(difference, dim=1).square_()
            self.add_rows(difference, weights, start + begin)
        return squares

    def add_weight(self, weights: Iterable[float]) -> None:
        """All parts of these updates have been added."""
        self._count(sum(weights))

    def add_product(self, factors: list["Factors"], base: Tensor | None, kept: Tensor, start: int) -> None:
        """Add sum left^T right + kept * base, the weighted update (out, in) of factored weights, from element `start`.

        Args:
            factors: of the clients, with weight / scale in their coefficients.
            base, kept: the global weight (out, in) and its 0-d factor; a base of None adds nothing.
            start: place of the weight in the update.
        """
        out, width = factors[0].left[0].shape[1], factors[0].right.shape[1]
        rows = min(out, max(1, 8 * self.block // width))  # wider than a block of sums, for the product's sake
        # the same places for every block, as in `add`
        product = factors[0].right.new_empty((rows, width))
        terms = torch.empty(min(self.block, product.numel()), dtype=torch.float64, device=product.device)
        for begin in range(0, out, rows):
            part = product[: min(rows, out - begin)]
            if base is None:
                part.zero_()
            else:
                torch.mul(kept, base[begin : begin + rows], out=part)
            for some in factors:
                part.addmm_(some.columns(begin, begin + len(part)).T, some.right)
            for place, values in enumerate(part.view(-1).split(len(terms))):
                grid = terms[: len(values)].copy_(values).mul_(_GRID).round_()
                self._accumulate(start + begin * width + place * len(terms), grid)

    def merge(self, other: PartialAverage) -> None:
        """Add another partial average of the same cohort."""
        if other.scale != self.scale:
            raise ValueError(f"partial averages on different grids ({other.scale} and {self.scale}) cannot be merged")
        if other.total.dtype != self.total.dtype:
            raise ValueError(f"sums in {other.total.dtype} and in {self.total.dtype} cannot be merged")
        self.total.add_(other.total.to(self.total.device))
        self.weight += other.weight

    def result(self, metrics: dict[str, float] | None = None) -> PartialAverage:
        """The average so far."""
        return PartialAverage(total=self.total, weight=self.weight, scale=self.scale, metrics=metrics or {})


def merged(average: OnlineAverage | None, partial: PartialAverage) -> OnlineAverage:
    """The average with one more partial average, whose sum it takes over where there is none yet."""
    if average is None:
        average = OnlineAverage(0, scale=partial.scale)
        average.total, average.weight = partial.total, partial.weight
    else:
        average.merge(partial)
    return average
