"""From a recipe and a dataset to a partition: the pool of samples, the deal, the holdout, the record."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from fedsim.data.deal import Deal
from fedsim.data.federated import FederatedDataset
from fedsim.data.partition.holdout import NONE, Holdout, hold_out
from fedsim.data.partition.record import Partition
from fedsim.rng import stream


@dataclass(frozen=True)
class Pool:
    """The samples that a recipe deals: the owned training rows, or all where nobody owns any.

    Attributes:
        dataset: theirs.
        rows: (M,) int64 row numbers of the training split; None where they are 0 ... M - 1.
        targets: (M, ...) theirs.
    """

    dataset: FederatedDataset
    rows: np.ndarray | None
    targets: np.ndarray

    def numbers(self) -> np.ndarray:
        """(M,) int64: the rows."""
        return np.arange(len(self.targets)) if self.rows is None else self.rows

    def inputs(self) -> np.ndarray:
        """(M, ...) as stored; a copy where the pool is not the whole split."""
        inputs = self.dataset.train.inputs
        return (inputs[: len(self.targets)] if self.rows is None else inputs[torch.from_numpy(self.rows)]).numpy()


def pool_of(dataset: FederatedDataset) -> Pool:
    """The pool of a dataset."""
    train = dataset.train
    targets = train.targets.numpy()
    if train.order is None:
        return Pool(dataset, None, targets[: train.num_samples])
    rows = train.order if train.offsets is None else train.order[: train.num_samples]
    return Pool(dataset, rows, targets[rows])


def dealt(
    name: str, recipe: Any, dataset: FederatedDataset, seed: int, deal: Callable[[Pool, np.random.Generator], Deal]
) -> Partition:
    """The partition that `deal`, called with the pool and the stream of the seed, makes.

    Args:
        name: the recipe's.
        recipe: the dataclass of the recipe's options; its `holdout` is applied.
        dataset: the samples.
        seed: of deal and holdout.
        deal: from `fedsim.data.deal`.
    """
    pool = pool_of(dataset)
    result = deal(pool, stream(seed, "partition"))
    partition = Partition(
        offsets=result.offsets,
        order=result.order if pool.rows is None else pool.rows[result.order],
        num_samples=len(dataset.train.inputs),
        recipe={"name": name, **options(recipe)},
        seed=seed,
        facts=result.facts,
        dataset=(dataset.name, dataset.fingerprint()),
    )
    return with_holdout(partition, dataset, recipe.holdout, seed)


def with_holdout(partition: Partition, dataset: FederatedDataset, holdout: Holdout, seed: int) -> Partition:
    """The partition with validation and test samples set aside in each client; itself where `holdout` sets none."""
    if not holdout:
        return partition
    targets = dataset.train.targets.numpy()
    order, held_out = hold_out(partition.offsets, partition.order, targets, holdout, seed)
    recipe = {**partition.recipe, "holdout": options(holdout)}
    return replace(partition, order=order, held_out=held_out, recipe=recipe)


def options(recipe: Any) -> dict[str, Any]:
    """The options of a recipe as JSON can hold them; a holdout that sets nothing aside is left out."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {"name": type(value).__name__, **options(value)}
        if isinstance(value, functools.partial):
            return plain(value.func) if not value.keywords else {"name": plain(value.func), **value.keywords}
        if callable(value):
            return f"{value.__module__}.{value.__qualname__}"
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {name: plain(value) for name, value in values.items() if not isinstance(value, Holdout) or value != NONE}


def check_positive_ints(recipe: Any, *names: str) -> None:
    """Raises ValueError where one of the recipe's options is no positive integer."""
    for name in names:
        value = getattr(recipe, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"partition.{name} must be a positive integer, got {value!r}")


def check_alpha(alpha: object) -> None:
    """Raises ValueError where a concentration is no positive number."""
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not (number and math.isfinite(alpha) and alpha > 0):  # pyright: ignore[reportArgumentType, reportOperatorIssue]
        raise ValueError(f"partition.alpha must be a positive number, got {alpha!r}")
