"""The packed form of a federated dataset: all samples in a few arrays, and who owns which rows.

No client has an object of its own: client `c` is a range of rows, so a million clients cost two integers each.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedsim.data.digest import array_digest
from fedsim.objective import Objective, chosen, cross_entropy

ELSEWHERE = "remote"
"""`FederatedDataset.source` of samples that others hold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The samples of one purpose (train, validation or test) and their owners.

    Attributes:
        inputs: (N, ...) in compact storage, for example uint8 images (N, channels, height, width) or int32
            tokens; possibly memory-mapped. `FederatedDataset.preprocess` makes them what the model takes.
        targets: (N,) int64 class indices, or (N, ...) for sequences; or what another objective learns, numbers (N, ...)
            float32 or labels (N, L) of zeros and ones.
        offsets: (C + 1,) int64 bounds of the clients' ranges; None where no client owns the samples
            (a central test set).
        order: (M,) int64 row numbers; client c owns rows `order[offsets[c]:offsets[c + 1]]`. None where the
            samples already lie client after client, so that client c owns rows `offsets[c]:offsets[c + 1]`.
    """

    inputs: Tensor
    targets: Tensor
    offsets: np.ndarray | None = None
    order: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.targets)} targets: give one target a sample")
        if self.offsets is None:
            return
        end = len(self.inputs) if self.order is None else len(self.order)
        if self.offsets[0] != 0 or self.offsets[-1] > end or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"client offsets must rise from 0 to at most {end}, the number of samples")

    @property
    def owned(self) -> bool:
        """Whether clients own these samples."""
        return self.offsets is not None

    @property
    def num_samples(self) -> int:
        """Samples that a client owns; all samples where nobody owns them."""
        return len(self.inputs) if self.offsets is None else int(self.offsets[-1])

    @property
    def num_clients(self) -> int:
        return 0 if self.offsets is None else len(self.offsets) - 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """(C,) int64, read-only: samples of each client."""
        assert self.offsets is not None, "this split has no owners"
        sizes = np.diff(self.offsets)
        sizes.flags.writeable = False  # everybody has the same
        return sizes

    def rows(self, client: int) -> np.ndarray:
        """(n,) int64: the rows that `client` owns, in the client's own order."""
        assert self.offsets is not None, "this split has no owners"
        start, stop = int(self.offsets[client]), int(self.offsets[client + 1])
        return np.arange(start, stop) if self.order is None else self.order[start:stop]


def identity(inputs: Tensor) -> Tensor:
    """Samples are stored as the model takes them."""
    return inputs


def unit_floats(inputs: Tensor) -> Tensor:
    """uint8 (B, ...) to float32 (B, ...) in [0, 1]."""
    return inputs.float() / 255


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """uint8 images (B, channels, height, width) to float32: divided by 255, minus mean, over std, per channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, inputs: Tensor) -> Tensor:
        scale, shift = _scale_and_shift(tuple(self.mean), tuple(self.std), inputs.device)
        return inputs.float() * scale + shift


@lru_cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(channels, 1, 1) each; made once, since numbers on their way to a GPU make the host wait for it."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedDataset:
    """Training and evaluation samples with their owners.

    Attributes:
        name: as in the configuration, for example "femnist".
        train: the training samples; owned by clients, unless a partition is still to be applied.
        test: central (no owners) or per client; None where there is none.
        validation: held-out samples of the clients; None where there is none.
        client_ids: the clients' names, (C,); empty before a partition.
        groups: what each client is part of by nature, (C,), for example the play of a role (LEAF's "hierarchies");
            empty where there is no such thing.
        num_classes: size of the model's output: classes, or numbers or labels of a target.
        preprocess: batched function on the device, from storage (B, ...) to the model's input (B, ...), float32, or
            int64 for tokens.
        objective: what is learned from these samples.
        source: where the samples came from, for example "leaf", "glyphs" or "torchvision".
        notes: warnings that belong in the log and in summary.json, for example that a stand-in was used.
    """

    name: str
    train: Split
    test: Split | None = None
    validation: Split | None = None
    client_ids: Sequence[str] = ()
    groups: Sequence[str] = ()
    num_classes: int
    preprocess: Callable[[Tensor], Tensor] = identity
    objective: Objective = field(default_factory=cross_entropy)
    source: str = "memory"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for part in (self.train, self.test, self.validation):
            if part is not None:
                self._refuse_kinds(part)
        chosen(self.objective)
        if self.train.owned and len(self.client_ids) != self.train.num_clients:
            raise ValueError(
                f"{self.train.num_clients} clients but {len(self.client_ids)} client_ids: give each a name"
            )
        if len(self.groups) not in (0, len(self.client_ids)):
            raise ValueError(f"{len(self.client_ids)} clients but {len(self.groups)} groups: give each one, or none")

    def _refuse_kinds(self, part: Split) -> None:
        for what, values in (("inputs", part.inputs), ("targets", part.targets)):
            if not isinstance(values, Tensor):
                raise ValueError(
                    f"{self.name}: the {what} of a Split are a tensor, not {type(values).__name__}: "
                    "torch.from_numpy makes one, and fedsim.from_arrays a dataset of arrays"
                )
        for what, values in (("offsets", part.offsets), ("order", part.order)):
            if values is not None and not isinstance(values, np.ndarray):
                raise ValueError(f"{self.name}: the {what} of a Split are a NumPy array, not {type(values).__name__}")

    @property
    def num_clients(self) -> int:
        return self.train.num_clients

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed sample, without the batch dimension."""
        return tuple(self.preprocess(self.train.inputs[:1]).shape[1:])

    def with_clients(
        self, offsets: np.ndarray, order: np.ndarray | None, client_ids: Sequence[str]
    ) -> "FederatedDataset":
        """The same samples under other owners; a test set that belonged to the former owners becomes central."""
        train = replace(self.train, offsets=offsets, order=order)
        test = None if self.test is None else replace(self.test, offsets=None, order=None)
        return replace(self, train=train, test=test, validation=None, client_ids=client_ids, groups=())

    def fingerprint(self) -> str:
        """16 hexadecimal digits of who owns which samples: the owners, targets and inputs of each split.

        Equal data have equal fingerprints on every machine, and any other sample, label or owner gives another one.
        Of inputs beyond 1 GiB a fixed sample counts (`fedsim.data.digest`). Of samples that others hold
        (`fedsim.data.remote`) nothing is known but whose they are, so there the clients' names count. Computed once for
        each dataset object.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            if split is None:
                digest.update(b"none")
                continue
            for part in (split.inputs.numpy(), split.targets.numpy(), split.offsets, split.order):
                digest.update(b"none" if part is None else array_digest(np.asarray(part)))
        if self.source == ELSEWHERE:
            digest.update(json.dumps(list(self.client_ids)).encode())
        return digest.hexdigest()[:16]

    def frame(self) -> pd.DataFrame:
        """One row a client: `client`, `train`, and `test` where clients own test samples (numbers of samples)."""
        columns: dict[str, Sequence[str] | np.ndarray] = {
            "client": list(self.client_ids),
            "train": self.train.sizes,
        }
        if self.test is not None and self.test.owned:
            columns["test"] = self.test.sizes
        return pd.DataFrame(columns)
