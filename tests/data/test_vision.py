"""torchvision's sets, read from small files in their formats."""

import ast
import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from fedsim.data import vision
from fedsim.data.federated import FederatedDataset

MNIST10K = Path(__file__).parents[2].parent / "shared" / "data" / "mnist10k"


def write_idx(file: Path, array: np.ndarray) -> None:
    """The IDX format: 0, 0, type 8 (unsigned byte), dimensions, sizes as big-endian int32, the bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array(array.shape, dtype=">i4").tobytes()
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def write_idx_set(folder: Path, prefixes: tuple[str, str], labels: list[int]) -> np.ndarray:
    """Images (n, 28, 28), pixel (sample, row, column) = 3 sample + 2 row + column; test has the first two."""
    images = np.add.outer(3 * np.arange(len(labels)), np.add.outer(2 * np.arange(28), np.arange(28)))
    for prefix, count in zip(prefixes, (len(labels), 2), strict=True):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images[:count])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.array(labels[:count]))
    return images


def write_cifar(root: Path, cifar: Any, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Batches of two images in CIFAR's pickles, whose checksums torchvision is told to expect."""
    folder = root / cifar.base_folder
    folder.mkdir(parents=True)
    labels = "labels" if cifar.base_folder == "cifar-10-batches-py" else "fine_labels"
    data = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)

    def put(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for files in ("train_list", "test_list"):
        sums = [[name, put(name, {"data": data, labels: [3, 9]})] for name, _ in getattr(cifar, files)]
        monkeypatch.setattr(cifar, files, sums)
    meta = {**cifar.meta, "md5": put(cifar.meta["filename"], {cifar.meta["key"]: ["a", "b"]})}
    monkeypatch.setattr(cifar, "meta", meta)
    return data


def check(dataset: FederatedDataset, name: str, num_classes: int) -> None:
    """What all sets have in common."""
    assert (dataset.name, dataset.source, dataset.num_classes) == (name, "torchvision", num_classes)
    assert dataset.test is not None
    for split in (dataset.train, dataset.test):
        assert not split.owned
        assert split.inputs.dtype == torch.uint8
        assert split.inputs.is_contiguous()
        assert split.targets.dtype == torch.int64


IDX_SETS = [(vision.mnist, "MNIST", "mnist", 0.1307, 0.3081)]
IDX_SETS += [(vision.fashion_mnist, "FashionMNIST", "fashion_mnist", 0.2860, 0.3530)]
IDX_SETS += [(vision.kmnist, "KMNIST", "kmnist", 0.1918, 0.3483)]


@pytest.mark.parametrize(("load", "folder", "name", "mean", "std"), IDX_SETS)
def test_sets_in_mnists_files(
    tmp_path: Path, load: Callable[..., FederatedDataset], folder: str, name: str, mean: float, std: float
) -> None:
    images = write_idx_set(tmp_path / folder / "raw", ("train", "t10k"), [4, 0, 9])
    dataset = load(root=str(tmp_path))
    check(dataset, name, 10)
    assert dataset.test is not None
    assert torch.equal(dataset.train.inputs, torch.from_numpy(images.astype(np.uint8)).unsqueeze(1))
    assert dataset.train.targets.tolist() == [4, 0, 9]
    assert len(dataset.test.inputs) == 2
    assert dataset.input_shape == (1, 28, 28)
    expected = (torch.from_numpy(images[:, None] % 256) / 255 - mean) / std
    torch.testing.assert_close(dataset.preprocess(dataset.train.inputs), expected.float())


def test_emnist_is_upright_and_letters_count_from_zero(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    images = write_idx_set(raw, ("emnist-byclass-train", "emnist-byclass-test"), [61, 0, 5])
    write_idx_set(raw, ("emnist-letters-train", "emnist-letters-test"), [26, 1, 5])
    dataset = vision.emnist(root=str(tmp_path))
    check(dataset, "emnist", 62)
    assert torch.equal(dataset.train.inputs[:, 0], torch.from_numpy(images.astype(np.uint8)).transpose(1, 2))
    assert dataset.train.targets.tolist() == [61, 0, 5]
    letters = vision.emnist(root=str(tmp_path), split="letters")
    check(letters, "emnist", 26)
    assert letters.train.targets.tolist() == [25, 0, 4]


def test_emnist_splits_are_torchvisions() -> None:
    classes = {
        # torchvision keeps an empty class 0 in "letters"
        split: len(names) - (split == "letters")
        for split, names in torchvision.datasets.EMNIST.classes_split_dict.items()
    }
    assert classes == vision.EMNIST_CLASSES
    with pytest.raises(ValueError, match=r"EMNIST has no split 'byClass': set data.split to one of byclass, bymerge"):
        vision.emnist(root="/nowhere", split="byClass")


@pytest.mark.parametrize(
    ("load", "cifar", "name", "num_classes"),
    [
        (vision.cifar10, torchvision.datasets.CIFAR10, "cifar10", 10),
        (vision.cifar100, torchvision.datasets.CIFAR100, "cifar100", 100),
    ],
)
def test_cifar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[..., FederatedDataset],
    cifar: Any,
    name: str,
    num_classes: int,
) -> None:
    data = write_cifar(tmp_path, cifar, monkeypatch)
    dataset = load(root=str(tmp_path))
    check(dataset, name, num_classes)
    assert dataset.test is not None
    # CIFAR stores each image as 1024 red, 1024 green and 1024 blue bytes, row by row.
    assert torch.equal(dataset.test.inputs, torch.from_numpy(data.reshape(2, 3, 32, 32)))
    assert len(dataset.train.inputs) == 2 * len(cifar.train_list)
    assert dataset.test.targets.tolist() == [3, 9]
    assert dataset.input_shape == (3, 32, 32)
    batch = tmp_path / cifar.base_folder / "test" if num_classes == 100 else None
    batch = batch or tmp_path / cifar.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name}: the files in .*{cifar.base_folder} are damaged \(Dataset not"):
        load(root=str(tmp_path))


def test_svhn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_svhn: Callable[[Path, pytest.MonkeyPatch], np.ndarray]
) -> None:
    images = write_svhn(tmp_path, monkeypatch)  # (32, 32, 3, 24), as in the Matlab files
    dataset = vision.svhn(root=str(tmp_path))
    check(dataset, "svhn", 10)
    assert dataset.input_shape == (3, 32, 32)
    assert np.array_equal(dataset.train.inputs[5].numpy(), images[:, :, :, 5].transpose(2, 0, 1))
    assert dataset.train.targets[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    file = tmp_path / "SVHN" / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"svhn: the files in {tmp_path}/SVHN are damaged \(Dataset not.*del"):
        vision.svhn(root=str(tmp_path))
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match=r"data=svhn needs SciPy to read its files: pip install '.\[tabular\]'"):
        vision.svhn(root=str(tmp_path))


LOADERS = [
    (vision.mnist, r"no MNIST/raw/train-images-idx3-ubyte in"),
    (vision.fashion_mnist, r"no FashionMNIST/raw/train-images-idx3-ubyte in"),
    (vision.kmnist, r"no KMNIST/raw/train-images-idx3-ubyte in"),
    (vision.svhn, r"no SVHN/train_32x32.mat in"),
    (vision.emnist, r"no EMNIST/raw/emnist-byclass-train-images-idx3-ubyte in"),
    (vision.cifar10, r"no cifar-10-batches-py/data_batch_1 in"),
    (vision.cifar100, r"no cifar-100-python/train in"),
]


@pytest.mark.parametrize(("load", "message"), LOADERS)
def test_missing_files_name_the_folder_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., FederatedDataset], message: str
) -> None:
    way_out = r": set data.root=\.\.\. or data.download=true$"
    with pytest.raises(FileNotFoundError, match=f"{message} {tmp_path}{way_out}"):
        load(root=str(tmp_path))
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=f"{message} {tmp_path / 'cache' / 'torchvision'}{way_out}"):
        load()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("train-images-idx3-ubyte", lambda raw: raw[:-5], "shape"),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:3], ""),
        ("train-labels-idx1-ubyte", lambda raw: b"", ""),
        ("train-labels-idx1-ubyte", lambda raw: bytes([0, 0, 99, 1]) + raw[4:], ""),
        (
            "train-labels-idx1-ubyte",
            lambda raw: bytes([0, 0, 8, 1, 0, 0, 0, 2, 4, 0]),
            "3 inputs but 2 targets",
        ),
        ("t10k-labels-idx1-ubyte", lambda raw: raw[:-1] + b"\x0a", "a label is not one of 10 classes"),
    ],
)
def test_damaged_files_are_one_clear_line(
    tmp_path: Path, file: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw", ("train", "t10k"), [4, 0, 9])
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"mnist: the files in {tmp_path}/MNIST are damaged \(.+\): del") as caught:
        vision.mnist(root=str(tmp_path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(ValueError, match=rf"mnist: cannot download into {tmp_path} \(Error downl") as caught:
        vision.mnist(root=str(tmp_path), download=True)
    assert "\n" not in str(caught.value)
    assert "check the network" in str(caught.value)


def test_download_takes_what_is_there(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw", ("train", "t10k"), [4, 0, 9])
    assert len(vision.mnist(root=str(tmp_path), download=True).train.inputs) == 3


def test_importing_the_module_does_not_import_torchvision() -> None:
    # It takes seconds, which the other datasets should not pay for.
    tree = ast.parse(Path(vision.__file__).read_text())
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imported
    assert not any("torchvision" in line for line in imported)


@pytest.mark.skipif(not MNIST10K.is_dir(), reason=f"needs 10,000 images of MNIST in {MNIST10K}")
def test_the_real_mnist() -> None:
    dataset = vision.mnist(root=str(MNIST10K))
    check(dataset, "mnist", 10)
    assert dataset.train.inputs.shape == (8000, 1, 28, 28)
    assert dataset.test is not None
    assert dataset.test.inputs.shape == (2000, 1, 28, 28)
    assert dataset.train.targets.bincount().min() > 600
    # Mean and deviation are those of all 60,000 images: 8,000 of them come close.
    images = dataset.preprocess(dataset.train.inputs)
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02
