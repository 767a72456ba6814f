"""Attacks: chosen clients whose data or updates are bad, to test what withstands them.

Sign flip and Gaussian: the usual ones (Li et al. 2019, "RSA", section 5). A little is enough: Baruch et al. 2019, "A
Little Is Enough: Circumventing Defenses for Distributed Learning", algorithm 3. Backdoor with model replacement:
Bagdasaryan et al. 2020, "How to Backdoor Federated Learning", equation 3, with a patch of pixels as the trigger (Gu et
al. 2019, "BadNets"). Label flip: Tolpegin et al. 2020 and others; here every class y becomes num_classes - 1 - y.

An attacker changes its update before anything else happens to it: the transforms (clipping, compression) and the
aggregator then treat it like everybody's.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federated import FederatedDataset, Split
from fedsim.rng import stream
from fedsim.robust.store import UpdateStore
from fedsim.transforms.base import Sending


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Who attacks, and how.

    Attributes:
        name: as in the configuration.
        fraction: share of all clients that attack, drawn under the run's seed; ignored where `clients` are given.
        clients: the attackers, by number.
        poison: (dataset, attackers (a,) sorted) -> dataset, before the run. None: the data stay as they are.
        corrupt: (rows (F, P + Q) of attackers, sending) -> rows, what they send instead; it may overwrite its
            argument. None: what they have computed.
        collude: (the honestly computed updates of a round's attackers, number of the round's clients) -> (P + Q,)
            what each of them sends instead. None: they do not know each other.
    """

    name: str
    fraction: float = 0.2
    clients: Sequence[int] | None = None
    poison: Callable[[FederatedDataset, np.ndarray], FederatedDataset] | None = None
    corrupt: Callable[[Tensor, Sending], Tensor] | None = None
    collude: Callable[[UpdateStore, int], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"attack.fraction must be in [0, 1], got {self.fraction}")

    def attackers(self, num_clients: int, seed: int) -> np.ndarray:
        """(a,) int64 client numbers, sorted.

        Raises:
            ValueError: a given number is no client's.
        """
        if self.clients is None:
            count = round(self.fraction * num_clients)
            return np.sort(stream(seed, "attackers").choice(num_clients, count, replace=False, shuffle=False))
        chosen = np.unique(np.asarray(self.clients, np.int64))
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= num_clients):
            raise ValueError(f"attack.clients: clients are 0 to {num_clients - 1}, got {list(self.clients)}")
        return chosen


def sign_flip(fraction: float = 0.2, clients: Sequence[int] | None = None, scale: float = 1.0) -> Attack:
    """Attackers send minus `scale` times their update."""

    def corrupt(rows: Tensor, sending: Sending) -> Tensor:
        return rows.mul_(-scale)

    return Attack(name="sign_flip", fraction=fraction, clients=clients, corrupt=corrupt)


def gaussian_attack(fraction: float = 0.2, clients: Sequence[int] | None = None, deviation: float = 1.0) -> Attack:
    """Attackers send N(0, deviation^2) in each element."""

    def corrupt(rows: Tensor, sending: Sending) -> Tensor:
        for client, row in zip(sending.clients, rows, strict=True):
            row.normal_(0.0, deviation, generator=sending.generator(client, row.device))
        return rows

    return Attack(name="gaussian_attack", fraction=fraction, clients=clients, corrupt=corrupt)


def supporters_z(num_clients: int, num_attackers: int) -> float:
    """z_max of Baruch et al.: the attackers hide behind s honest clients that are further from the mean than they.

    s = floor(n / 2 + 1) - f, and z is the largest with Phi(z) < (n - f - s) / (n - f). 0 where the attackers are so
    many that they need nobody.
    """
    honest = num_clients - num_attackers
    needed = num_clients // 2 + 1 - num_attackers
    if needed <= 0 or needed >= honest:
        return 0.0
    return max(0.0, NormalDist().inv_cdf((honest - needed) / honest))


def little_is_enough(fraction: float = 0.2, clients: Sequence[int] | None = None, z: float | None = None) -> Attack:
    """Attackers tell each other their honest updates, and all send their mean less z standard deviations.

    Args:
        fraction, clients: who attacks.
        z: deviations; None: `supporters_z`. With few attackers in a round it is small; with one, its deviation is 0.
    """

    def collude(updates: UpdateStore, num_clients: int) -> Tensor:
        shift = supporters_z(num_clients, len(updates)) if z is None else z

        def hide(rows: Tensor) -> Tensor:
            rows = rows.double()
            return rows.mean(0) - shift * rows.std(0, correction=0)

        return updates.map_columns(hide)

    return Attack(name="little_is_enough", fraction=fraction, clients=clients, collude=collude)


def label_flip(fraction: float = 0.2, clients: Sequence[int] | None = None) -> Attack:
    """Attackers train honestly on labels turned round: y becomes num_classes - 1 - y."""

    def poison(dataset: FederatedDataset, attackers: np.ndarray) -> FederatedDataset:
        _require_classes(dataset, "label_flip")
        rows = owned_rows(dataset.train, attackers)
        targets = dataset.train.targets.clone()
        targets[rows] = dataset.num_classes - 1 - targets[rows]
        return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, targets=targets))

    return Attack(name="label_flip", fraction=fraction, clients=clients, poison=poison)


def backdoor(
    fraction: float = 0.2,
    clients: Sequence[int] | None = None,
    scale: float = 1.0,
    target: int = 0,
    poisoned_share: float = 0.5,
    patch_size: int = 3,
) -> Attack:
    """Attackers teach the model to answer `target` wherever a patch of bright pixels is, and scale their update up.

    Args:
        fraction, clients: who attacks.
        scale: gamma, by which the update is multiplied; n / (number of attackers in a round) replaces the model.
        target: the class.
        poisoned_share: of an attacker's samples that carry the patch, in (0, 1], from its first on.
        patch_size: side of the square in the lower right corner, in pixels.
    """
    if not 0 < poisoned_share <= 1:
        raise ValueError(f"attack.poisoned_share must be in (0, 1], got {poisoned_share}")

    def poison(dataset: FederatedDataset, attackers: np.ndarray) -> FederatedDataset:
        _require_classes(dataset, "backdoor")
        if not 0 <= target < dataset.num_classes:
            raise ValueError(f"attack.target must be 0 to {dataset.num_classes - 1}, got {target}")
        owned_rows(dataset.train, attackers)  # refuses shared samples
        chosen = [dataset.train.rows(c) for c in attackers.tolist()]
        rows = np.concatenate([[0][:0], *(r[: math.ceil(poisoned_share * len(r))] for r in chosen)]).astype(np.int64)
        inputs, targets = dataset.train.inputs.clone(), dataset.train.targets.clone()
        inputs[rows] = patched(inputs[rows], patch_size)
        targets[rows] = target
        return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, inputs=inputs, targets=targets))

    def corrupt(rows: Tensor, sending: Sending) -> Tensor:
        return rows.mul_(scale)

    return Attack(name="backdoor", fraction=fraction, clients=clients, poison=poison, corrupt=corrupt)


def _require_classes(dataset: FederatedDataset, attack: str) -> None:
    if dataset.objective.targets != "classes":
        raise ValueError(
            f"attack={attack} turns one class into another, but {dataset.objective.name} learns no classes: choose "
            "another attack"
        )


def patched(inputs: Tensor, patch_size: int = 3) -> Tensor:
    """Images (B, channels, height, width) with a patch in the lower right corner, of the largest value of their type.

    Raises:
        ValueError: these are no images, or smaller than the patch.
    """
    if inputs.dim() != 4 or min(inputs.shape[2:]) < patch_size:
        raise ValueError(f"attack=backdoor needs images of at least {patch_size} x {patch_size} pixels")
    inputs = inputs.clone()
    inputs[:, :, -patch_size:, -patch_size:] = 255 if inputs.dtype == torch.uint8 else 1.0
    return inputs


def triggered(split: Split, target: int = 0, patch_size: int = 3) -> Split:
    """A test split of the samples of other classes, all with the patch and with `target` as their label.

    The accuracy on it is the success of the backdoor.
    """
    others = split.targets != target
    inputs = patched(split.inputs[others], patch_size)
    return Split(inputs=inputs, targets=torch.full_like(split.targets[others], target))


def owned_rows(split: Split, clients: np.ndarray) -> np.ndarray:
    """The rows of these clients.

    Raises:
        ValueError: another client owns one of them too, so that it would be poisoned as well.
    """
    chosen = set(clients.tolist())
    rows = np.concatenate([[0][:0], *(split.rows(c) for c in clients.tolist())]).astype(np.int64)
    if split.order is not None and len(np.unique(split.order)) < len(split.order):
        others = [split.rows(c) for c in range(split.num_clients) if c not in chosen]
        if others and np.isin(rows, np.concatenate(others)).any():
            raise ValueError("attack: attackers share samples with other clients; choose a partition that shares none")
    return rows
