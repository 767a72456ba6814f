"""Data that others hold: what a server knows of its workers' clients, their names and numbers of samples.

`data=remote` is the server's side of a deployment (docs/deployment.md): each worker brings data of its own, and only
names, sizes, updates and sums of metrics reach the server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedsim.data.deal.base import offsets_of
from fedsim.data.federated import ELSEWHERE, FederatedDataset, Split
from fedsim.objective import Objective, chosen

_TARGET = "fedsim.data.remote.remote"
_TOKENS = torch.int64


def remote(*, input_shape: Sequence[int], num_classes: int, tokens: bool = False) -> FederatedDataset:
    """A data set without a sample and without clients.

    Args:
        input_shape: of one preprocessed sample of the workers' data, as the model takes it.
        num_classes: size of the model's output.
        tokens: samples are int64 numbers of symbols, not float32.
    """
    return held_elsewhere([], np.zeros(0, np.int64), input_shape=input_shape, num_classes=num_classes, tokens=tokens)


def is_remote(data: Mapping[str, Any]) -> bool:
    """Whether a configuration's `data` is `remote`."""
    return data.get("_target_") == _TARGET


def held_elsewhere(
    names: Sequence[str],
    sizes: np.ndarray,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    tokens: bool = False,
    objective: Objective | None = None,
) -> FederatedDataset:
    """Clients of these names with so many training samples (C,) each, none of which is here.

    All their samples are one row of zeros, which nobody must train on. Without an `objective` they learn classes.
    """
    objective = chosen(objective)
    blank = torch.zeros((1, *input_shape), dtype=_TOKENS if tokens else torch.float32)
    offsets = offsets_of(sizes)
    train = Split(
        inputs=blank,
        targets=torch.zeros(
            (1,) if objective.targets == "classes" else (1, num_classes),
            dtype=torch.float32 if objective.targets == "numbers" else torch.int64,
        ),
        offsets=offsets,
        order=np.zeros(int(offsets[-1]), np.int64),
    )
    return FederatedDataset(
        name="remote",
        train=train,
        client_ids=list(names),
        num_classes=num_classes,
        objective=objective,
        source=ELSEWHERE,
    )


def among(dataset: FederatedDataset, index: np.ndarray, num_clients: int) -> FederatedDataset:
    """The same samples where client c of `dataset` is client index[c] of `num_clients`; the others have none.

    Args:
        dataset: with C clients.
        index: (C,) distinct client numbers below `num_clients`.
    """
    names = [""] * num_clients
    for name, at in zip(dataset.client_ids, index.tolist(), strict=True):
        names[at] = name

    def moved(split: Split | None) -> Split | None:
        if split is None or not split.owned:
            return split
        sizes = np.zeros(num_clients, np.int64)
        sizes[index] = split.sizes
        rows = [split.rows(c) for c in np.argsort(index).tolist()]
        return replace(split, offsets=offsets_of(sizes), order=np.concatenate(rows))

    train = moved(dataset.train)
    assert train is not None
    return replace(
        dataset,
        train=train,
        test=moved(dataset.test),
        validation=moved(dataset.validation),
        client_ids=names,
        groups=(),
    )
