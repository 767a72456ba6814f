"""Image sets that torchvision reads: MNIST, FashionMNIST, KMNIST, EMNIST, CIFAR-10, CIFAR-100 and SVHN.

Nobody owns their samples: a partition deals the training samples to clients, and the test set stays central.
Images are kept as bytes and normalised a batch at a time, with the training set's usual mean and deviation.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedsim.data.cache import cache_root
from fedsim.data.federated import FederatedDataset, Normalise, Split

# Classes of each split of Cohen et al. 2017, "EMNIST: an extension of MNIST to handwritten letters".
EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
_IDX_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def mnist(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """Handwritten digits: inputs (N, 1, 28, 28) uint8, targets (N,) int64 in [0, 10).

    Args:
        root: folder that has or gets `MNIST/raw`; None is `torchvision` in the cache root.
        download: fetch what is missing.

    Raises:
        FileNotFoundError: files are missing and `download` is false.
        ValueError: a file is damaged, or the download failed.
    """
    from torchvision.datasets import MNIST  # slow to import, so only those who use it pay for it

    return _load(
        "mnist",
        root,
        download,
        files=[f"MNIST/raw/{file}" for file in _IDX_FILES],
        make=MNIST,
        images=_grey,
        num_classes=10,
        normalise=Normalise(mean=(0.1307,), std=(0.3081,)),
    )


def fashion_mnist(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """Pictures of clothing: shapes, arguments and errors as in `mnist`, in `FashionMNIST/raw`."""
    from torchvision.datasets import FashionMNIST

    return _load(
        "fashion_mnist",
        root,
        download,
        files=[f"FashionMNIST/raw/{file}" for file in _IDX_FILES],
        make=FashionMNIST,
        images=_grey,
        num_classes=10,
        normalise=Normalise(mean=(0.2860,), std=(0.3530,)),
    )


def kmnist(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """Ten cursive Japanese characters: shapes, arguments and errors as in `mnist`, in `KMNIST/raw`."""
    from torchvision.datasets import KMNIST

    return _load(
        "kmnist",
        root,
        download,
        files=[f"KMNIST/raw/{file}" for file in _IDX_FILES],
        make=KMNIST,
        images=_grey,
        num_classes=10,
        normalise=Normalise(mean=(0.1918,), std=(0.3483,)),
    )


def emnist(*, root: str | None = None, download: bool = False, split: str = "byclass") -> FederatedDataset:
    """Handwritten digits and letters, without their writers: inputs (N, 1, 28, 28) uint8, targets (N,) int64.

    The files hold the images transposed and count the letters of the split "letters" from 1; here the images
    are upright and targets start at 0.

    Args:
        root: folder that has or gets `EMNIST/raw`; None is `torchvision` in the cache root.
        download: fetch what is missing.
        split: one of `EMNIST_CLASSES`, which gives its number of classes.

    Raises:
        FileNotFoundError: files are missing and `download` is false.
        ValueError: `split` is unknown, a file is damaged, or the download failed.
    """
    from torchvision.datasets import EMNIST

    if split not in EMNIST_CLASSES:
        raise ValueError(f"EMNIST has no split {split!r}: set data.split to one of {', '.join(EMNIST_CLASSES)}")
    files = (f"{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1"))
    return _load(
        "emnist",
        root,
        download,
        files=[f"EMNIST/raw/emnist-{split}-{file}" for file in files],
        make=lambda folder, **kwargs: EMNIST(folder, split, **kwargs),
        images=lambda data: _grey(data.transpose(1, 2)),
        num_classes=EMNIST_CLASSES[split],
        normalise=Normalise(mean=(0.1722,), std=(0.3309,)),
        first_class=1 if split == "letters" else 0,
    )


def cifar10(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """Small colour photographs: inputs (N, 3, 32, 32) uint8, targets (N,) int64 in [0, 10).

    Args:
        root: folder that has or gets `cifar-10-batches-py`; None is `torchvision` in the cache root.
        download: fetch what is missing.

    Raises:
        FileNotFoundError: files are missing and `download` is false.
        ValueError: a file is damaged, or the download failed.
    """
    from torchvision.datasets import CIFAR10

    return _load(
        "cifar10",
        root,
        download,
        files=_batch_files(CIFAR10),
        make=CIFAR10,
        images=_colour,
        num_classes=10,
        normalise=Normalise(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    )


def cifar100(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """As `cifar10` with 100 (fine) classes, in `cifar-100-python`."""
    from torchvision.datasets import CIFAR100

    return _load(
        "cifar100",
        root,
        download,
        files=_batch_files(CIFAR100),
        make=CIFAR100,
        images=_colour,
        num_classes=100,
        normalise=Normalise(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    )


def svhn(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """House numbers: inputs (N, 3, 32, 32) uint8, targets (N,) int64 in [0, 10); 73,257 images, and 26,032 for tests.

    Args:
        root: folder that has or gets `SVHN/train_32x32.mat` and `SVHN/test_32x32.mat`; None is `torchvision` in the
            cache root.
        download: fetch what is missing.

    Raises:
        FileNotFoundError: files are missing and `download` is false.
        ValueError: SciPy is missing, a file is damaged, or the download failed.
    """
    from torchvision.datasets import SVHN

    try:
        import scipy.io  # noqa: F401 (with which torchvision reads the files)
    except ImportError as error:
        raise ValueError(
            "data=svhn needs SciPy to read its files: pip install '.[tabular]' in fedsim's folder"
        ) from error

    def make(folder: str, *, train: bool, download: bool) -> Any:
        read = SVHN(str(Path(folder) / "SVHN"), "train" if train else "test", download=download)
        return SimpleNamespace(data=read.data, targets=read.labels)

    return _load(
        "svhn",
        root,
        download,
        files=[f"SVHN/{SVHN.split_list[part][1]}" for part in ("train", "test")],
        make=make,
        images=lambda data: torch.from_numpy(data).contiguous(),  # in the order (N, 3, 32, 32) already
        num_classes=10,
        normalise=Normalise(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
    )


def _load(
    name: str,
    root: str | None,
    download: bool,
    *,
    files: Sequence[str],
    make: Callable[..., Any],
    images: Callable[[Any], Tensor],
    num_classes: int,
    normalise: Normalise,
    first_class: int = 0,
) -> FederatedDataset:
    """Both splits of a torchvision dataset.

    Args:
        name: the dataset's name.
        root: torchvision's root folder.
        download: fetch what is missing.
        files: what has to be in `root`.
        make: torchvision's class, called with (root, train=..., download=...).
        images: from its `data` to (N, channels, height, width) uint8.
        num_classes: classes that targets may have.
        normalise: of the images.
        first_class: what torchvision calls class 0.
    """
    folder = cache_root() / "torchvision" if root is None else Path(root).expanduser()

    def missing() -> str | None:
        return next((file for file in files if not (folder / file).is_file()), None)

    if not download and (file := missing()):
        raise FileNotFoundError(f"{name}: no {file} in {folder}: set data.root=... or data.download=true")
    splits: list[Split] = []
    try:
        for train in (True, False):
            dataset = make(str(folder), train=train, download=download)
            targets = torch.as_tensor(dataset.targets, dtype=torch.int64) - first_class
            if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
                raise ValueError(f"a label is not one of {num_classes} classes")
            splits.append(Split(inputs=images(dataset.data), targets=targets))
    except Exception as error:  # whatever a parser stumbles over in a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if missing():
            raise ValueError(
                f"{name}: cannot download into {folder} ({reason}): check the network and that the folder "
                "can be written, or set data.root to a folder that has the files"
            ) from error
        raise ValueError(
            f"{name}: the files in {folder / files[0].split('/')[0]} are damaged ({reason}): delete that "
            "folder and set data.download=true"
        ) from error
    return FederatedDataset(
        name=name,
        train=splits[0],
        test=splits[1],
        num_classes=num_classes,
        preprocess=normalise,
        source="torchvision",
    )


def _batch_files(cifar: Any) -> list[str]:
    names = [file for file, _ in [*cifar.train_list, *cifar.test_list]]
    return [f"{cifar.base_folder}/{file}" for file in [*names, cifar.meta["filename"]]]


def _grey(data: Tensor) -> Tensor:
    """(N, 28, 28) to (N, 1, 28, 28)."""
    return data.unsqueeze(1).contiguous()


def _colour(data: Any) -> Tensor:
    """NumPy (N, 32, 32, 3) to (N, 3, 32, 32)."""
    return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
