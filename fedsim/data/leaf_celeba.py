"""CelebA in LEAF's form: a client is a celebrity, x the names of image files, y whether the person smiles."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.federated import FederatedDataset, unit_floats
from fedsim.data.leaf import leaf_folder, open_leaf
from fedsim.data.leaf_json import LeafUser
from fedsim.data.leaf_numbers import class_targets
from fedsim.data.leaf_pack import Encoding, Files

_IMAGES = ("raw/img_align_celeba", "img_align_celeba", "data/raw/img_align_celeba")


@dataclass(frozen=True, kw_only=True)
class Images:
    """x: names of image files; y: 0 or 1. uint8 inputs (n, 3, size, size), resized without keeping the proportions.

    Attributes:
        folder: of the files.
        size: height and width in pixels.
    """

    folder: Path
    size: int

    @property
    def key(self) -> list[Any]:
        return ["images", str(self.folder.resolve()), self.size]

    def encodings(self, files: Files) -> Iterator[Encoding]:
        from PIL import Image  # comes with torchvision; nobody else needs it

        def encode(user: LeafUser) -> tuple[np.ndarray, np.ndarray]:
            inputs = np.empty((len(user.x), 3, self.size, self.size), dtype=np.uint8)
            for row, name in zip(inputs, user.x, strict=True):
                path = self.folder / str(name)
                if not path.is_file():
                    raise ValueError(  # an OSError would be taken for one of the cache
                        f"the image {path} of user {user.name!r} does not exist: set data.images to the folder with "
                        "CelebA's img_align_celeba"
                    )
                with Image.open(path) as image:
                    row[:] = np.asarray(image.convert("RGB").resize((self.size, self.size))).transpose(2, 0, 1)
            # LEAF computes y as (attribute + 1) / 2, which is 0.0 or 1.0
            y = [int(label) if isinstance(label, float) and label.is_integer() else label for label in user.y]
            return inputs, class_targets(replace(user, y=y), 2)

        yield Encoding(dtype=np.uint8, input_shape=(3, self.size, self.size), encode=encode)


def leaf_celeba(
    *,
    root: str | None = None,
    images: str | None = None,
    size: int = 84,
    num_clients: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """CelebA, one client a celebrity: inputs (N, 3, size, size) uint8, divided by 255; targets (N,), 1 for a smile.

    LEAF's own network sees bytes from 0 to 255.

    Args:
        root: folder of LEAF's files: train/ and test/ in it, or in its data/, celeba/ or celeba/data/.
        images: folder with the image files; None is raw/img_align_celeba or img_align_celeba in that folder.
        size: pixels that the images are resized to.
        num_clients, seed, cache_dir: as for `open_leaf`.

    Raises:
        FileNotFoundError: LEAF's files or the folder of images are not there.
        ValueError: `root` or an image is missing, or a file is damaged.
    """
    if root is None:
        raise ValueError(
            "data=leaf_celeba needs data.root=<folder with LEAF's celeba train/ and test/>, which LEAF's data/celeba/"
            "preprocess.sh makes, and CelebA's images in its raw/img_align_celeba/"
        )
    base = leaf_folder(root, "celeba", "")
    choices = [Path(images).expanduser()] if images is not None else [base / name for name in _IMAGES]
    folder = next((choice for choice in choices if choice.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"no folder {' or '.join(map(str, choices))}: set data.images to the folder with CelebA's img_align_celeba"
        )
    recipe = Images(folder=folder, size=size)
    dataset, _ = open_leaf(
        base, recipe, name="celeba", num_classes=2, num_clients=num_clients, seed=seed, cache_dir=cache_dir
    )
    return replace(dataset, preprocess=unit_floats)
