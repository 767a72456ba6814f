"""A partition that is replayed from a file: fedsim's manifest, or another program's lists of rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.deal.base import offsets_of
from fedsim.data.federated import FederatedDataset
from fedsim.data.partition.build import with_holdout
from fedsim.data.partition.holdout import NONE, Holdout
from fedsim.data.partition.record import Partition


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """The partition in a file, whatever the run's seed (which only a holdout on top of a file without a seed uses).

    Attributes:
        path: a manifest (.npz) that `Partition.save` or `python -m fedsim.data_report` wrote; or a .json file with a
            list of row numbers of the training split for each client, in a list or as the values of an object.
            A manifest knows the data that it was made for; JSON is taken at its word.
        holdout: what each client sets aside for validation and test, where the file does not say so already.
    """

    path: str
    holdout: Holdout = NONE

    def partition(self, dataset: FederatedDataset, seed: int) -> Partition:
        """The partition in the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, of another dataset, or holds out samples and is asked to do so again.
        """
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"partition.path={self.path} does not exist: give a file that a data report wrote")
        read = _read_json(path, dataset) if path.suffix == ".json" else Partition.load(path)
        try:
            read.check(dataset)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not self.holdout:
            return read
        if read.held_out is not None:
            raise ValueError(f"{path} holds out samples already: leave partition.holdout out")
        drawn = seed if read.seed is None else read.seed
        return with_holdout(replace(read, seed=drawn), dataset, self.holdout, drawn)

    def __call__(self, dataset: FederatedDataset, seed: int) -> FederatedDataset:
        return self.partition(dataset, seed).apply(dataset)


def _read_json(path: Path, dataset: FederatedDataset) -> Partition:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    clients = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(clients, list) or not clients or not all(isinstance(rows, list) for rows in clients):
        raise ValueError(f"{path} must hold a list of row numbers for each client, in a list or in an object")
    num_samples = len(dataset.train.inputs)
    try:
        order = np.array([row for rows in clients for row in rows])
        if order.dtype.kind != "i":
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path} must hold whole row numbers") from None
    sizes = np.array([len(rows) for rows in clients])
    if not sizes.all():
        raise ValueError(f"{path}: client {int(np.argmin(sizes))} has no samples")
    if order.min() < 0 or order.max() >= num_samples:
        raise ValueError(
            f"{path}: rows run from {order.min()} to {order.max()}, but data={dataset.name} has {num_samples} "
            "training samples"
        )
    counts = np.bincount(order, minlength=num_samples)
    if counts.max() > 1:
        raise ValueError(f"{path}: row {int(counts.argmax())} is given to {counts.max()} clients")
    left_out = num_samples - len(order)
    return Partition(
        offsets=offsets_of(sizes),
        order=order.astype(np.int64),
        num_samples=num_samples,
        recipe={"name": "from_file", "file": path.name},
        facts={"num_left_out": left_out} if left_out else {},
        dataset=(dataset.name, dataset.fingerprint()),
    )
