"""Images in folders, a folder a client: CLIENT/CLASS/image, or train/CLIENT/CLASS/image and the same in test/.

The images are decoded once, into a packed cache that is keyed by their names, sizes and times of change.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.data.cache import cache_root, key_of, packed
from fedsim.data.federated import FederatedDataset, Normalise, Split
from fedsim.data.held_out import hold_out
from fedsim.data.images import form_of, pack_images

FORMAT = 1  # of the packed arrays: raise it whenever what is packed changes
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


class _Images(NamedTuple):
    """The images of a split, client after client: files, and numbers of clients and classes, each (N,)."""

    files: list[Path]
    clients: np.ndarray
    classes: np.ndarray


def folders(
    *,
    root: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """The images below `root`: inputs (N, channels, height, width) uint8, targets (N,) int64.

    Args:
        root: has a folder for each client, and in it one for each class; or has train/, and perhaps test/, with
            such folders. Clients and classes come in the order of their names.
        image_size: pixels a side to which all images are scaled; None: they have equal sizes already.
        channels: 1 for grey, 3 for colour; None: as the first image.
        classes: names of all classes, in order, where not everybody has images of each; None: those that are there.
        test_fraction: share of each client's images held out where there is no test/, in [0, 1).
        seed: of that draw.
        cache_dir: folder of the caches; None for the default of `fedsim.data.cache.cache_root`.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: it has another structure, an image cannot be read or has another size, or an argument is out of
            range.
    """
    if root is None:
        raise ValueError("data=folders needs data.root=<folder with CLIENT/CLASS/image files>")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise FileNotFoundError(f"folders: no folder {base}: set data.root to one with CLIENT/CLASS/image files")
    split_already = (base / "train").is_dir()
    found = {part: _list(base / part) for part in ("train", "test") if (base / part).is_dir()}
    found = found if split_already else {"train": _list(base)}
    clients = sorted({client for client, _, _ in found["train"]})
    there = sorted({label for images in found.values() for _, label, _ in images})
    classes = there if classes is None else list(classes)
    if not set(there) <= set(classes):
        unknown = min(set(there) - set(classes))
        raise ValueError(f"folders: {base} has a class {unknown!r}, which data.classes does not name: add it there")
    strangers = {client for client, _, _ in found.get("test", ())} - set(clients)
    if strangers:
        raise ValueError(
            f"folders: {base / 'test' / min(strangers)} has no folder in {base / 'train'}: every client trains; "
            "remove it, or give it training images"
        )
    parts = {part: _numbered(images, clients, classes) for part, images in found.items()}
    if not split_already:
        whole = parts["train"]
        held = hold_out(len(whole.files), whole.clients, test_fraction, seed)
        parts = {part: _take(whole, rows) for part, rows in (("train", held.train), ("test", held.test)) if len(rows)}
    form = form_of(parts["train"].files[0], size=image_size, channels=channels)
    content = [FORMAT, form.shape, form.resize, {part: _stamps(images) for part, images in parts.items()}]
    build = functools.partial(pack_images, files={part: images.files for part, images in parts.items()}, form=form)
    arrays, _ = packed(cache_root(cache_dir) / "folders" / key_of(content), build)
    splits = {
        part: Split(
            inputs=torch.from_numpy(arrays[part]),
            targets=torch.from_numpy(images.classes),
            offsets=np.searchsorted(images.clients, np.arange(len(clients) + 1)).astype(np.int64),
        )
        for part, images in parts.items()
    }
    return FederatedDataset(
        name="folders",
        train=splits["train"],
        test=splits.get("test"),
        client_ids=clients,
        num_classes=len(classes),
        preprocess=Normalise(mean=(0.5,) * form.channels, std=(0.5,) * form.channels),
        source="folders",
    )


def _list(base: Path) -> list[tuple[str, str, Path]]:
    """(client, class, file) of all images, in the order of their names."""
    images = [
        (client.name, label.name, file)
        for client in sorted(base.iterdir())
        if client.is_dir()
        for label in sorted(client.iterdir())
        if label.is_dir()
        for file in sorted(label.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not images:
        raise ValueError(
            f"folders: no image is at {base}/CLIENT/CLASS/: set data.root to a folder of that form, with files "
            f"that end in {', '.join(SUFFIXES)}"
        )
    return images


def _numbered(images: list[tuple[str, str, Path]], clients: list[str], classes: list[str]) -> _Images:
    client_number = {name: number for number, name in enumerate(clients)}
    class_number = {name: number for number, name in enumerate(classes)}
    return _Images(
        [file for _, _, file in images],
        np.array([client_number[client] for client, _, _ in images], dtype=np.int64),
        np.array([class_number[label] for _, label, _ in images], dtype=np.int64),
    )


def _take(images: _Images, rows: np.ndarray) -> _Images:
    return _Images([images.files[row] for row in rows.tolist()], images.clients[rows], images.classes[rows])


def _stamps(images: _Images) -> list[list[Any]]:
    states = [file.stat() for file in images.files]
    return [[str(file), s.st_size, s.st_mtime_ns] for file, s in zip(images.files, states, strict=True)]
