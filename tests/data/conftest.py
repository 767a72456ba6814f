"""Small files in the true formats of the sets that are read, written where a test wants them."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def idx(file: Path, array: np.ndarray) -> None:
    """The IDX format: 0, 0, type 8 (unsigned byte), dimensions, sizes as big-endian int32, the bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array(array.shape, dtype=">i4").tobytes()
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def write_idx(root: Path, folder: str, prefixes: tuple[str, str]) -> None:
    """40 training and 10 test images 28 x 28."""
    rng = np.random.default_rng(0)
    for prefix, count in zip(prefixes, (40, 10), strict=True):
        raw = root / folder / "raw"
        idx(raw / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)


def write_cifar(root: Path, name: str, patch: pytest.MonkeyPatch) -> None:
    """Batches of eight images in CIFAR's pickles, whose checksums torchvision is told to expect."""
    import torchvision

    cifar: Any = getattr(torchvision.datasets, name)
    folder = root / cifar.base_folder
    folder.mkdir(parents=True)

    def put(file: str, content: dict[str, Any]) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    data = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    for files in ("train_list", "test_list"):
        sums = [[file, put(file, {"data": data, key: list(range(8))})] for file, _ in getattr(cifar, files)]
        patch.setattr(cifar, files, sums)
    meta = {**cifar.meta, "md5": put(cifar.meta["filename"], {cifar.meta["key"]: ["a", "b"]})}
    patch.setattr(cifar, "meta", meta)


def write_svhn(root: Path, patch: pytest.MonkeyPatch) -> np.ndarray:
    """Matlab files of 24 images, digits 1 to 10 (which is 0); their checksums as torchvision expects. The images."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 24), dtype=np.uint8)
    (root / "SVHN").mkdir(parents=True)
    files = dict(SVHN.split_list)
    for part in ("train", "test"):
        url, name, _ = files[part]
        savemat(root / "SVHN" / name, {"X": images, "y": (np.arange(24)[:, None] % 10 + 1).astype(np.uint8)})
        files[part] = [url, name, hashlib.md5((root / "SVHN" / name).read_bytes()).hexdigest()]
    patch.setattr(SVHN, "split_list", files)
    return images


def write_celeba(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Person p of 1 ... 4 has 2 p + 1 photographs of brightness 40 p; every other photograph of a person smiles."""
    from torchvision.datasets import CelebA

    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    people = np.repeat([1, 2, 3, 4], [3, 5, 7, 9])
    shuffled = np.random.default_rng(0).permutation(people)
    names = [f"{place + 1:06d}.jpg" for place in range(len(shuffled))]
    seen, smiles = dict.fromkeys(range(1, 5), 0), []
    for name, person in zip(names, shuffled.tolist(), strict=True):
        Image.new("RGB", (178, 218), (40 * person,) * 3).save(folder / "img_align_celeba" / name)
        smiles.append(seen[person] % 2)
        seen[person] += 1
    lines = {
        "identity_CelebA.txt": [f"{n} {p}" for n, p in zip(names, shuffled, strict=True)],
        "list_eval_partition.txt": [f"{n} 0" for n in names],
        "list_attr_celeba.txt": [
            str(len(names)),
            "Male Smiling",
            *(f"{n} -1 {2 * s - 1: d}" for n, s in zip(names, smiles, strict=True)),
        ],
        "list_bbox_celeba.txt": [str(len(names)), "image_id x_1 y_1 width height", *(f"{n} 1 2 3 4" for n in names)],
        "list_landmarks_align_celeba.txt": [str(len(names)), "lefteye_x lefteye_y", *(f"{n} 1 2" for n in names)],
    }
    sums = [("", "", "img_align_celeba.zip")]
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n")
        sums.append(("", hashlib.md5((folder / name).read_bytes()).hexdigest(), name))
    patch.setattr(CelebA, "file_list", sums)


def write_libsvm(file: Path, labels: list[int], columns: int) -> np.ndarray:
    """A row for each label with two columns (counted from 1) that are not zero; returns the dense table."""
    rng = np.random.default_rng(len(labels))
    dense = np.zeros((len(labels), columns), dtype=np.float32)
    for row in dense:
        row[np.sort(rng.choice(columns, 2, replace=False))] = rng.integers(1, 9, 2) / 8
    lines = [
        f"{label:+d} " + " ".join(f"{column + 1}:{row[column]:g}" for column in np.flatnonzero(row))
        for label, row in zip(labels, dense, strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = ("\n".join(lines) + "\n").encode()
    if file.suffix == ".bz2":
        import bz2

        text = bz2.compress(text)
    file.write_bytes(text)
    return dense


def write_folders(root: Path) -> None:
    """ann and bob draw circles and squares, images of 6 x 5 pixels: ann 4 of each, bob 6 circles."""
    rng = np.random.default_rng(0)
    for client, label, count in (("bob", "circle", 6), ("ann", "circle", 4), ("ann", "square", 4)):
        (root / client / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / client / label / f"{number}.png")


def write_parquet(file: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)


WriteSource = Callable[[str], list[str]]


@pytest.fixture
def write_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteSource:
    """Writes the files of a configuration of conf/data/ and returns the options that lead there."""

    def write(name: str) -> list[str]:
        root = tmp_path / "files"
        if name in ("mnist", "fashion_mnist", "kmnist"):
            folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}[name]
            write_idx(root, folder, ("train", "t10k"))
        elif name == "emnist":
            write_idx(root, "EMNIST", ("emnist-byclass-train", "emnist-byclass-test"))
        elif name in ("cifar10", "cifar100"):
            write_cifar(root, name.upper(), monkeypatch)
        elif name == "svhn":
            write_svhn(root, monkeypatch)
        elif name == "celeba":
            write_celeba(root, monkeypatch)
        elif name == "adult":
            write_libsvm(root / "a9a", [-1, 1] * 50, 123)
            write_libsvm(root / "a9a.t", [1, -1] * 5, 122)
        elif name == "covtype":
            write_libsvm(root / "covtype.libsvm.binary.scale.bz2", [1, 2] * 20, 54)
        elif name == "rcv1":
            write_libsvm(root / "rcv1_train.binary.bz2", [-1, 1] * 20, 47236)
        elif name == "libsvm":
            write_libsvm(root / "mine.txt", [3, 5, 8] * 12, 6)
            return [f"data.train={root / 'mine.txt'}"]
        elif name == "folders":
            write_folders(root)
        elif name == "hub":
            rows = {"pixels": np.random.default_rng(0).normal(size=(30, 4)).tolist(), "label": [0, 1, 2] * 10}
            write_parquet(root / "mine.parquet", {**rows, "writer_id": [f"w{i % 5}" for i in range(30)]})
            return [
                "data.path=parquet",
                f"data.data_files={root / 'mine.parquet'}",
                "data.client_column=writer_id",
                f"data.cache_dir={tmp_path / 'cache'}",
            ]
        else:
            return []
        return [f"data.root={root}"]

    return write


@pytest.fixture(name="write_libsvm")
def _write_libsvm() -> Callable[..., np.ndarray]:
    return write_libsvm


@pytest.fixture(name="write_folders")
def _write_folders() -> Callable[[Path], None]:
    return write_folders


@pytest.fixture(name="write_parquet")
def _write_parquet() -> Callable[[Path, Any], None]:
    return write_parquet


@pytest.fixture(name="write_svhn")
def _write_svhn() -> Callable[[Path, pytest.MonkeyPatch], np.ndarray]:
    return write_svhn
