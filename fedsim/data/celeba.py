"""CelebA by identity, as in LEAF (Caldas et al. 2018): a celebrity is a client, and the task is to tell who smiles.

torchvision checks and indexes the files (Liu et al. 2015; 202,599 photographs of 10,177 people). The photographs are
decoded once, into a packed cache: 4.2 GB at 84 x 84 pixels, memory-mapped.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.data.cache import cache_root, key_of, packed
from fedsim.data.federated import FederatedDataset, Normalise, Split
from fedsim.data.held_out import check_fraction, hold_out
from fedsim.data.images import Form, pack_images

FORMAT = 1  # of the packed arrays: raise it whenever what is packed changes
# What torchvision wants to see; the photographs are in img_align_celeba/ beside them.
FILES = ("list_attr_celeba.txt", "identity_CelebA.txt", "list_bbox_celeba.txt")
FILES += ("list_landmarks_align_celeba.txt", "list_eval_partition.txt")


def celeba(
    *,
    root: str | None = None,
    download: bool = False,
    attribute: str = "Smiling",
    image_size: int = 84,
    min_samples: int = 5,
    test_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """CelebA, one client a celebrity: inputs (N, 3, size, size) uint8, targets (N,) int64, 1 where the attribute is.

    Args:
        root: folder that has or gets `celeba/`; None is `torchvision` in the cache root.
        download: fetch what is missing (torchvision does it with the gdown package).
        attribute: one of the 40 of list_attr_celeba.txt.
        image_size: pixels a side to which photographs are scaled.
        min_samples: people with fewer photographs are left out.
        test_fraction: share of each client's photographs held out for tests, in [0, 1).
        seed: of that draw.
        cache_dir: folder of the packed arrays; None for the default of `fedsim.data.cache.cache_root`.

    Raises:
        FileNotFoundError: files are missing and `download` is false.
        ValueError: an argument is out of range, a file is damaged, or the download failed.
    """
    check_fraction(test_fraction)
    if image_size < 1 or min_samples < 1:
        raise ValueError(f"data.image_size is {image_size} and data.min_samples {min_samples}: choose 1 or more")
    folder = cache_root() / "torchvision" if root is None else Path(root).expanduser()
    index = _index(folder, download)
    if attribute not in index.attr_names:
        known = ", ".join(name for name in index.attr_names if name)
        raise ValueError(f"CelebA has no attribute {attribute!r}: set data.attribute to one of {known}")
    people, owners, counts = np.unique(index.identity.numpy()[:, 0], return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[owners] >= min_samples)
    if not len(kept):
        raise ValueError(f"nobody in CelebA has data.min_samples={min_samples} photographs: choose fewer")
    people, owners = np.unique(people[owners[kept]], return_inverse=True)
    held = hold_out(len(kept), owners, test_fraction, seed)
    labels = index.attr[:, index.attr_names.index(attribute)].to(torch.int64)
    form = Form(channels=3, height=image_size, width=image_size, resize=True)
    parts = {"train": kept[held.train], "test": kept[held.test]}
    photographs = {
        part: [folder / "celeba" / "img_align_celeba" / index.filename[row] for row in rows.tolist()]
        for part, rows in parts.items()
    }
    if missing := next((file for files in photographs.values() for file in files if not file.is_file()), None):
        raise ValueError(f"celeba: {missing} is missing: unpack img_align_celeba.zip anew beside it")
    names = {part: [file.name for file in files] for part, files in photographs.items()}
    content = [FORMAT, str(folder.resolve()), form.shape, names]
    build = functools.partial(pack_images, files=photographs, form=form)
    arrays, _ = packed(cache_root(cache_dir) / "celeba" / key_of(content), build)
    offsets = {"train": held.train_offsets, "test": held.test_offsets}
    splits = {
        part: Split(inputs=torch.from_numpy(arrays[part]), targets=labels[rows], offsets=offsets[part])
        for part, rows in parts.items()
    }
    return FederatedDataset(
        name="celeba",
        train=splits["train"],
        test=splits["test"] if len(held.test) else None,
        client_ids=[str(person) for person in people],
        num_classes=2,
        preprocess=Normalise(mean=(0.5,) * 3, std=(0.5,) * 3),
        source="torchvision",
    )


def _index(folder: Path, download: bool) -> Any:
    """torchvision's CelebA, of which the lists are read and no photograph."""
    from torchvision.datasets import CelebA

    def missing() -> str | None:
        if not (folder / "celeba" / "img_align_celeba").is_dir():
            return "celeba/img_align_celeba"
        return next((f"celeba/{name}" for name in FILES if not (folder / "celeba" / name).is_file()), None)

    if not download and (name := missing()):
        raise FileNotFoundError(f"celeba: no {name} in {folder}: set data.root=... or data.download=true")
    try:
        return CelebA(str(folder), split="all", target_type="identity", download=download)
    except Exception as error:  # whatever a parser or the download stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        if missing():
            raise ValueError(
                f"celeba: cannot download into {folder} ({reason}): check the network, or set data.root to a folder "
                "that has the files"
            ) from error
        raise ValueError(
            f"celeba: the lists in {folder / 'celeba'} are damaged ({reason}): delete them and set data.download=true"
        ) from error
