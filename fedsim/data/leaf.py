"""Any LEAF set: the folder of its JSON files as a dataset.

The first run packs the JSON (`leaf_pack`) into flat arrays beside it, in `.fedsim/`; later runs map those
into memory. The arrays are keyed by the content of the files, so a changed file is packed anew; a file whose
size and time of change are those of the last run is not read again to find out.

Departure from LEAF: users without training samples are left out (LEAF evaluates them).
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.cache import cache_root, key_of, packed
from fedsim.data.deal.base import offsets_of
from fedsim.data.federated import FederatedDataset, Split, identity, unit_floats
from fedsim.data.leaf_json import split_files
from fedsim.data.leaf_numbers import Numbers
from fedsim.data.leaf_pack import FORMAT, Recipe, pack, stamp
from fedsim.files import write_text
from fedsim.rng import stream

_LOG = logging.getLogger(__name__)
_STAMPS = "files.json"


def read_leaf(
    root: str | Path,
    *,
    name: str,
    num_classes: int,
    input_shape: Sequence[int],
    num_clients: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> FederatedDataset:
    """The LEAF set of numbers in `root`: every user is a client, with a train range and a test range of samples.

    Args:
        root, name, num_clients, seed, cache_dir: as for `open_leaf`.
        num_classes: targets are integers in [0, num_classes).
        input_shape: shape of one sample; the JSON may have it flat.
        preprocess: from storage to the model's input; None divides bytes by 255 and leaves floats alone.

    Returns:
        Inputs (N, *input_shape), uint8 where every value of all splits is k/255, else float32; targets (N,) int64.

    Raises:
        FileNotFoundError, ValueError: as `open_leaf`.
    """
    recipe = Numbers(num_classes=num_classes, input_shape=tuple(input_shape))
    dataset, _ = open_leaf(
        root, recipe, name=name, num_classes=num_classes, num_clients=num_clients, seed=seed, cache_dir=cache_dir
    )
    if preprocess is None:
        preprocess = unit_floats if dataset.train.inputs.dtype == torch.uint8 else identity
    return replace(dataset, preprocess=preprocess)


def open_leaf(
    root: str | Path,
    recipe: Recipe,
    *,
    name: str,
    num_classes: int,
    num_clients: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> tuple[FederatedDataset, dict[str, Any]]:
    """The LEAF set in `root` with samples as its recipe makes them, packed on the first call.

    Args:
        root: folder with train/*.json, test/*.json and perhaps val/*.json, or with data/train and so on.
        recipe: what x and y mean.
        name: the dataset's name.
        num_classes: size of the model's output.
        num_clients: how many clients to keep: the first of a seeded draw without replacement, in the files'
            order, so that fewer are a subset of more; they are copied into memory. None keeps all,
            memory-mapped.
        seed: of that draw.
        cache_dir: where the packed arrays go; None is `.fedsim/` in `root`, or the cache root where `root`
            cannot be written (which is logged).

    Returns:
        The dataset, whose `preprocess` is still the identity, and the recipe's facts. Clients come in the order of
        the training files; one without test samples has an empty test range. Of a set that is split by user nobody
        owns the test samples. LEAF's "hierarchies" are the clients' groups.

    Raises:
        FileNotFoundError: `root` or one of its splits is missing.
        ValueError: a file is damaged, a user's samples are inconsistent, or `num_clients` exceeds the users.
    """
    root = Path(root).expanduser()
    files = split_files(root)
    home = _home(root, cache_dir)
    content = [FORMAT, recipe.key, _digests(root, files, home / _STAMPS)]
    arrays, meta = packed(home / key_of(content), lambda folder: pack(files, folder, recipe))
    splits = {split: packed_split(arrays, split) for split in files}
    notes = []
    if meta["left_out"]:
        notes.append(f"{meta['left_out']} LEAF users have no training samples and are left out")
    notes += [f"no user of {split} has training samples, so that no client owns it" for split in meta["strangers"]]
    dataset = FederatedDataset(
        name=name,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("val"),
        client_ids=meta["users"],
        groups=meta["groups"],
        num_classes=num_classes,
        source="leaf",
        notes=tuple(notes),
    )
    return dataset if num_clients is None else keep_clients(dataset, num_clients, seed), meta["facts"]


def packed_split(arrays: dict[str, np.ndarray], split: str) -> Split:
    """The split "train", "test" or "val" of packed arrays."""
    owners = {
        kind: np.asarray(arrays[f"{split}_{kind}"]) if f"{split}_{kind}" in arrays else None
        for kind in ("offsets", "order")
    }
    inputs, targets = (torch.from_numpy(arrays[f"{split}_{kind}"]) for kind in ("inputs", "targets"))
    return Split(inputs=inputs, targets=targets, **owners)


def leaf_folder(root: str | Path, name: str, hint: str) -> Path:
    """Where LEAF's set `name` is under `root`, as `open_leaf` wants it: in it, or in its data/, NAME/ or NAME/data/.

    Raises:
        FileNotFoundError: nowhere; `hint` ends the message.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root} does not exist: set it to a folder with LEAF's {name}")
    bases = [root, root / "data", root / name, root / name / "data"]
    base = next((base for base in bases if (base / "train").is_dir()), None)
    if base is None:
        raise FileNotFoundError(
            f"no train/ of LEAF's {name} in {', '.join(map(str, bases))}: set data.root to the folder that has it{hint}"
        )
    return base


def keep_clients(dataset: FederatedDataset, num_clients: int, seed: int) -> FederatedDataset:
    """The first `num_clients` of a seeded draw, in the dataset's order, with copies of their samples.

    Raises:
        ValueError: there are not so many clients.
    """
    if not 1 <= num_clients <= dataset.num_clients:
        raise ValueError(
            f"data.num_clients={num_clients}, but {dataset.name} has {dataset.num_clients} clients: set it to "
            f"a number from 1 to {dataset.num_clients}, or to null for all"
        )
    draw = stream(seed, "leaf_clients").permutation(dataset.num_clients)
    clients = np.sort(draw[:num_clients]).tolist()
    return replace(
        dataset,
        train=_copied(dataset.train, clients),
        test=dataset.test and _copied(dataset.test, clients),
        validation=dataset.validation and _copied(dataset.validation, clients),
        client_ids=[dataset.client_ids[client] for client in clients],
        groups=[dataset.groups[client] for client in clients] if dataset.groups else (),
    )


def _copied(split: Split, clients: Sequence[int]) -> Split:
    if not split.owned:
        return split
    rows = torch.from_numpy(np.concatenate([split.rows(client) for client in clients]))
    return Split(inputs=split.inputs[rows], targets=split.targets[rows], offsets=offsets_of(split.sizes[list(clients)]))


def _home(root: Path, cache_dir: str | Path | None) -> Path:
    """The folder of the packed arrays of `root`."""
    if cache_dir is None:
        beside = root / ".fedsim"
        with contextlib.suppress(OSError):
            beside.mkdir(exist_ok=True)
        # A folder that cannot be written but was packed before serves as well.
        if beside.is_dir() and (os.access(beside, os.W_OK) or (beside / _STAMPS).exists()):
            return beside
    source = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=6).hexdigest()
    home = cache_root(cache_dir) / "leaf" / source
    if cache_dir is None:
        _LOG.warning("%s cannot be written: the packed LEAF arrays go to %s", root, home)
    return home


def _digests(root: Path, files: dict[str, list[Path]], stamps: Path) -> dict[str, list[Any]]:
    """Name to [size, hash] of the content; hashes only what changed since `stamps` was written."""
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(stamps.read_text())
    now: dict[str, list[Any]] = {}
    for path in [path for paths in files.values() for path in paths]:
        size, changed = stamp(path)
        before = known.get(str(path.relative_to(root)))
        if before is None or before[:2] != [size, changed]:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            before = [size, changed, digest]
        now[str(path.relative_to(root))] = before
    if now != known:
        with contextlib.suppress(OSError):  # it only saves the next run's time
            stamps.parent.mkdir(parents=True, exist_ok=True)
            write_text(stamps, json.dumps(now))
    return {path: [size, digest] for path, (size, _, digest) in now.items()}
