"""A user's own arrays as a federated dataset, and what other readers share with that: owners, labels.

Everything is checked here, once, in whole arrays: lengths, shapes, labels, numbers that are not finite.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.deal.base import offsets_of
from fedsim.data.federated import FederatedDataset, Split, identity, unit_floats
from fedsim.objective import Objective, chosen

_PIECE = 1 << 26  # bytes of inputs that are checked at once


def from_arrays(
    inputs: Any,
    targets: Any,
    clients: Any = None,
    *,
    test: Sequence[Any] | None = None,
    name: str = "arrays",
    num_classes: int | None = None,
    objective: Objective | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    source: str = "memory",
    notes: tuple[str, ...] = (),
) -> FederatedDataset:
    """A federated dataset of arrays, tensors or nested lists; samples may lie in any order.

    Args:
        inputs: (N, ...) finite numbers. float64 becomes float32; everything else stays as it is, bytes and memory maps
            included.
        targets: (N,) whole numbers from 0, or (N, ...) for sequences; for an objective that learns numbers (N,) or
            (N, ...) of them, and for one that learns labels (N, L) zeros and ones.
        clients: (N,) the owner of each sample, by number or name; None: nobody owns them, and a partition deals them.
        test: (inputs, targets) for a central test set, or (inputs, targets, clients) for samples that stay with
            clients of the training set; None for no test set.
        name: the dataset's name.
        num_classes: size of the model's output; None: one more than the largest target, or as many as a target has
            numbers or labels.
        objective: what is learned from them, for example `fedsim.objective.squared_error()`; None: classes.
        preprocess: batched, from storage to the model's input; None divides bytes by 255 and leaves floats alone.
        source: where the samples came from.
        notes: warnings for the log.

    Returns:
        Clients in ascending order of their number or name, each with its samples in the order given.

    Raises:
        ValueError: lengths differ, rows are ragged, a number is not finite, a target is no class (number, label), or a
            test sample belongs to a client without training samples.
    """
    objective = chosen(objective)
    train_inputs, train_targets = _checked(inputs, targets, "", objective)
    parts = None
    if test is not None:
        if len(test) not in (2, 3):
            raise ValueError(f"test has {len(test)} arrays: give (inputs, targets) or (inputs, targets, clients)")
        parts = _checked(test[0], test[1], "test ", objective)
        if parts[0].shape[1:] != train_inputs.shape[1:] or parts[0].dtype != train_inputs.dtype:
            raise ValueError(
                f"test samples are {parts[0].shape[1:]} {parts[0].dtype}, training samples {train_inputs.shape[1:]} "
                f"{train_inputs.dtype}: make them alike"
            )
        if objective.targets != "classes" and parts[1].shape[1:] != train_targets.shape[1:]:
            raise ValueError(
                f"test targets are {parts[1].shape[1:]}, training targets {train_targets.shape[1:]}: make them alike"
            )
    if objective.targets == "classes":
        found = 1 + int(max(part.max(initial=0) for part in (train_targets, *(parts or ())[1:])))
    else:
        found = math.prod(train_targets.shape[1:])
    if num_classes is not None and found > num_classes and objective.targets == "classes":
        raise ValueError(f"a target is {found - 1}, which is no class of {num_classes}: classes count from 0")
    offsets = order = names = test_offsets = test_order = None
    if clients is not None:
        owners = _names(clients, len(train_inputs), "")
        names, numbers = np.unique(owners, return_inverse=True)
        offsets, order = group(numbers, len(names))
    if parts is not None and test is not None and len(test) == 3:
        if names is None:
            raise ValueError("test samples have clients, training samples have not: give clients of both or of neither")
        test_offsets, test_order = group(_known(_names(test[2], len(parts[0]), "test "), names), len(names))
    if preprocess is None:
        preprocess = unit_floats if train_inputs.dtype == np.uint8 else identity
    return FederatedDataset(
        name=name,
        train=Split(inputs=_tensor(train_inputs), targets=_tensor(train_targets), offsets=offsets, order=order),
        test=None
        if parts is None
        else Split(inputs=_tensor(parts[0]), targets=_tensor(parts[1]), offsets=test_offsets, order=test_order),
        client_ids=() if names is None else [str(client) for client in names],
        num_classes=found if num_classes is None else num_classes,
        preprocess=preprocess,
        objective=objective,
        source=source,
        notes=notes,
    )


_Clients = Sequence[tuple[Any, Any]] | Mapping[Any, tuple[Any, Any]]


def from_clients(clients: _Clients, test_clients: _Clients | None = None, **options: Any) -> FederatedDataset:
    """`from_arrays` of samples that lie client by client.

    Args:
        clients: (inputs, targets) of each client: a list, or by name.
        test_clients: the same of held-out samples; who has none may be left out of a mapping.
        options: as for `from_arrays`.

    Raises:
        ValueError: there is no client, or one has no samples, or other ones than the rest; and as `from_arrays`.
    """
    if test_clients is not None:
        if "test" in options:
            raise ValueError("held-out samples come from test or from test_clients: give one of them")
        options["test"] = _joined(test_clients, "test ", options.get("objective"))
    return from_arrays(*_joined(clients, "", options.get("objective")), **options)


def _joined(clients: _Clients, which: str, objective: Objective | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and owners of all samples, client after client."""
    named = clients if isinstance(clients, Mapping) else dict(enumerate(clients))
    if not named:
        raise ValueError(f"there are no {which}clients: give (inputs, targets) of each")
    parts, objective = [], chosen(objective)
    for name, samples in named.items():
        if not isinstance(samples, tuple | list) or len(samples) != 2:
            raise ValueError(f"{which}client {name} is a {type(samples).__name__}: give (inputs, targets) of each")
        found = _checked(*samples, f"{which}client {name}'s ", objective)
        kinds = [", ".join(f"{a.shape[1:]} {a.dtype}" for a in pair) for pair in (found, *parts[:1])]
        if kinds[0] != kinds[-1]:
            raise ValueError(
                f"{which}client {name} has samples and targets of {kinds[0]}, the first one of {kinds[-1]}: make them "
                "alike"
            )
        parts.append(found)
    numbered = all(isinstance(name, int | np.integer) for name in named)
    names = list(named) if numbered else [str(name) for name in named]
    if len(set(names)) < len(names):
        raise ValueError(f"two {which}clients have the same name when it is written down: name them apart")
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return inputs, targets, np.repeat(np.array(names), [len(pair[1]) for pair in parts])


def group(numbers: np.ndarray, num_clients: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Offsets (C + 1,) and order (N,) of samples whose owners are numbered; order is None where they are sorted."""
    offsets = offsets_of(np.bincount(numbers, minlength=num_clients))
    if np.all(numbers[1:] >= numbers[:-1]):
        return offsets, None
    return offsets, np.argsort(numbers, kind="stable")


def _checked(inputs: Any, targets: Any, which: str, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as they are stored; `which` begins the errors' nouns."""
    inputs, targets = _array(inputs, f"{which}inputs"), _array(targets, f"{which}targets")
    if inputs.ndim < 2 or not len(inputs):
        raise ValueError(f"{which}inputs have shape {inputs.shape}: give (samples, ...) with at least one sample")
    if targets.ndim == 0 or len(targets) != len(inputs):
        count = len(targets) if targets.ndim else 1
        raise ValueError(f"{len(inputs)} {which}inputs but {count} {which}targets: give one target a sample")
    if inputs.dtype.kind not in "iufb":
        raise ValueError(f"{which}inputs are of type {inputs.dtype}: turn them into numbers first")
    if inputs.dtype == np.float64:
        with np.errstate(over="ignore"):  # what does not fit is found below
            inputs = inputs.astype(np.float32)
    if inputs.dtype.kind == "f":
        step = max(1, _PIECE * len(inputs) // inputs.nbytes)
        for start in range(0, len(inputs), step):
            finite = np.isfinite(inputs[start : start + step]).reshape(len(inputs[start : start + step]), -1).all(1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise ValueError(f"{which}sample {row} holds a number that is not a finite float32: repair or drop it")
    return inputs, _CHECKS[objective.targets](targets, which)


def _classes(targets: np.ndarray, which: str) -> np.ndarray:
    """int64."""
    if targets.dtype.kind == "f" and np.all(np.isfinite(targets)) and np.all(targets == np.rint(targets)):
        targets = targets.astype(np.int64)
    if targets.dtype.kind not in "iub":
        raise ValueError(
            f"{which}targets are of type {targets.dtype} and no whole numbers: "
            "number the classes from 0, for example with numpy.unique(targets, return_inverse=True), or learn the "
            "numbers: objective=fedsim.objective.squared_error()"
        )
    if targets.min(initial=0) < 0:
        raise ValueError(f"a {which}target is {targets.min()}: number the classes from 0")
    return targets.astype(np.int64, copy=False)


def _numbers(targets: np.ndarray, which: str) -> np.ndarray:
    """float32."""
    if targets.dtype.kind not in "iufb":
        raise ValueError(f"{which}targets are of type {targets.dtype}: turn them into numbers first")
    with np.errstate(over="ignore"):  # what does not fit is found below
        targets = targets.astype(np.float32, copy=False)
    finite = np.isfinite(targets).reshape(len(targets), -1).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"{which}target {row} holds a number that is not a finite float32: repair or drop it")
    return targets


def _labels(targets: np.ndarray, which: str) -> np.ndarray:
    """uint8."""
    if targets.dtype.kind not in "iufb" or not np.isin(targets, (0, 1)).all():
        raise ValueError(f"{which}targets are not all 0 or 1: give one of the two for each label")
    return targets.astype(np.uint8, copy=False)


_CHECKS = {"classes": _classes, "numbers": _numbers, "labels": _labels}


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{what} have rows of unequal lengths: cut or pad them to one shape") from None
    if array.dtype.kind == "O" and len(array) and isinstance(array[0], np.ndarray | list | tuple):
        raise ValueError(f"{what} have rows of unequal lengths: cut or pad them to one shape")
    return array


def _names(clients: Any, num_samples: int, which: str) -> np.ndarray:
    names = _array(clients, f"{which}clients")
    if names.dtype.kind == "O":
        missing = [place for place, name in enumerate(names) if name is None or name != name]
        if missing:
            raise ValueError(f"{which}sample {missing[0]} has no client: name one for each sample")
        names = names.astype(str)
    if names.shape != (num_samples,):
        raise ValueError(f"{num_samples} {which}samples but clients of shape {names.shape}: name one for each sample")
    if names.dtype.kind == "f" and not np.all(names == np.rint(names)):
        raise ValueError(f"{which}clients are of type {names.dtype} and no whole numbers: give numbers or names")
    return names.astype(np.int64) if names.dtype.kind == "f" else names


def _known(owners: np.ndarray, names: np.ndarray) -> np.ndarray:
    """(N,) int64: places of `owners` in the sorted `names`."""
    if (owners.dtype.kind in "US") != (names.dtype.kind in "US"):
        owners, names = owners.astype(str), names.astype(str)
    sorter = np.argsort(names, kind="stable")
    places = sorter[np.minimum(np.searchsorted(names, owners, sorter=sorter), len(names) - 1)]
    strange = names[places] != owners
    if strange.any():
        raise ValueError(
            f"test samples belong to client {owners[strange][0]!s}, who has no training samples: leave them out, or "
            "give the test set without clients"
        )
    return places


def _tensor(array: np.ndarray) -> Tensor:
    """Shares the array's memory, that of a read-only memory map too: nobody writes to a dataset's samples."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
