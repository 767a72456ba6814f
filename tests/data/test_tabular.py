"""Tables in LIBSVM's format, written by the tests."""

import bz2
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data import tabular
from fedsim.data.federated import FederatedDataset
from fedsim.data.tabular import adult, covtype, libsvm, rcv1


def test_adult_has_all_columns_and_classes_from_zero(tmp_path: Path, write_libsvm: Callable[..., np.ndarray]) -> None:
    train = write_libsvm(tmp_path / "a9a", [-1, 1, 1] * 100, 123)
    test = write_libsvm(tmp_path / "a9a.t", [1, -1], 122)  # as in the true file, whose last column is empty
    dataset = adult(root=str(tmp_path))
    assert (dataset.name, dataset.source, dataset.num_classes, dataset.input_shape) == ("adult", "libsvm", 2, (123,))
    assert not dataset.train.owned
    assert np.array_equal(dataset.preprocess(dataset.train.inputs).numpy(), train)
    assert dataset.train.targets.tolist() == [0, 1, 1] * 100
    assert dataset.test is not None
    assert np.array_equal(dataset.preprocess(dataset.test.inputs).numpy(), np.pad(test, ((0, 0), (0, 1))))
    assert dataset.test.targets.tolist() == [1, 0]


def test_a_sparse_table_stays_sparse(tmp_path: Path, write_libsvm: Callable[..., np.ndarray]) -> None:
    dense = write_libsvm(tmp_path / "rcv1_train.binary.bz2", [-1, 1] * 50, 47236)
    dataset = rcv1(root=str(tmp_path))
    assert dataset.test is not None
    assert dataset.train.inputs.shape == (75, 2, 2)  # two pairs of column and value, for 47,236 numbers
    assert dataset.test.inputs.shape == (25, 2, 2)
    assert dataset.input_shape == (47236,)
    rows = np.concatenate([dataset.preprocess(split.inputs).numpy() for split in (dataset.train, dataset.test)])
    assert np.array_equal(rows[np.lexsort(rows[:, dense.any(axis=0)].T)], dense[np.lexsort(dense[:, dense.any(0)].T)])


def test_scatter_makes_rows_of_any_length_dense() -> None:
    pairs = torch.tensor([[[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]], [[0.0, 1.0, 3.0], [7.0, 8.0, 9.0]]])
    assert tabular.Scatter(num_columns=4)(pairs).tolist() == [[0, 0, 5, 0], [7, 8, 0, 9]]


@pytest.mark.parametrize("packed", [True, False])
def test_covtype_holds_out_a_quarter(tmp_path: Path, write_libsvm: Callable[..., np.ndarray], packed: bool) -> None:
    file = tmp_path / "covtype.libsvm.binary.scale.bz2"
    dense = write_libsvm(file, [1, 2] * 20, 54)
    if not packed:  # a file that somebody has unpacked is found too
        (tmp_path / "covtype.libsvm.binary.scale").write_bytes(bz2.decompress(file.read_bytes()))
        file.unlink()
    splits = [(d := covtype(root=str(tmp_path), seed=seed)).train.targets.numpy() for seed in (0, 0, 1)]
    assert [len(split) for split in splits] == [30] * 3
    assert d.test is not None
    assert len(d.test.inputs) == 10
    whole = np.concatenate([d.preprocess(split.inputs).numpy() for split in (d.train, d.test)])
    assert sorted(map(tuple, whole)) == sorted(map(tuple, dense))
    assert np.array_equal(splits[0], splits[1])
    none = covtype(root=str(tmp_path), test_fraction=0)
    assert none.test is None
    assert np.array_equal(none.preprocess(none.train.inputs).numpy(), dense)


def test_any_file_with_any_labels(tmp_path: Path, write_libsvm: Callable[..., np.ndarray]) -> None:
    write_libsvm(tmp_path / "train", [30, 10, 20] * 3, 4)
    write_libsvm(tmp_path / "test", [20], 4)
    dataset = libsvm(train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    assert dataset.train.targets.tolist() == [2, 0, 1] * 3
    assert dataset.test is not None
    assert dataset.test.targets.tolist() == [1]
    assert dataset.num_classes == 3


@pytest.mark.parametrize(
    ("load", "name"),
    [(adult, "a9a"), (covtype, "covtype.libsvm.binary.scale.bz2"), (rcv1, "rcv1_train.binary.bz2")],
)
def test_missing_files_name_the_way_out_and_are_fetched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[..., FederatedDataset],
    name: str,
    write_libsvm: Callable[..., np.ndarray],
) -> None:
    root = tmp_path / "here"
    message = rf"^\w+: no {name} in {root}: set data.root=... or data.download=true$"
    with pytest.raises(FileNotFoundError, match=message):
        load(root=str(root))
    server = tmp_path / "server"
    monkeypatch.setattr(tabular, "COLLECTION", server.as_uri())
    with pytest.raises(
        ValueError, match=rf"^\w+: cannot download .*/{name} into {root} \(.*\): check the net"
    ) as caught:
        load(root=str(root), download=True)
    assert "\n" not in str(caught.value)
    assert not list(root.iterdir())
    for file in (name, "a9a.t"):
        write_libsvm(server / file, [-1, 1] * 20, 5)
    fetched = load(root=str(root), download=True)
    assert (root / name).read_bytes() == (server / name).read_bytes()
    assert load(root=str(root)).fingerprint() == fetched.fingerprint()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"+1 3:x\n", "is damaged or not in LIBSVM's format"),
        (b"hello world\n", "is damaged or not in LIBSVM's format"),
        (b"", "holds no rows"),
        (b"1 1:2\n-1 1:nan\n", "row 2 of .* holds a number that is not finite"),
        (b"1 200:1\n", "is damaged or not in LIBSVM's format"),
        (b"+1 1:1\n", "a9a.t has the label -1, which no row of .*a9a has"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, content: bytes, reason: str, write_libsvm: Callable[..., np.ndarray]
) -> None:
    write_libsvm(tmp_path / "a9a.t", [-1, 1], 5)
    (tmp_path / "a9a").write_bytes(content)
    with pytest.raises(ValueError, match=rf"adult: .*{reason}") as caught:
        adult(root=str(tmp_path))
    assert str(caught.value).endswith("delete it and set data.download=true")
    assert "\n" not in str(caught.value)


def test_a_truncated_archive_is_named(tmp_path: Path, write_libsvm: Callable[..., np.ndarray]) -> None:
    file = tmp_path / "rcv1_train.binary.bz2"
    write_libsvm(file, [-1, 1] * 50, 47236)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"rcv1: {file} is damaged .*: delete it and set data.download=true"):
        rcv1(root=str(tmp_path))


def test_a_table_too_large_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_libsvm: Callable[..., np.ndarray]
) -> None:
    write_libsvm(tmp_path / "wide", [0, 1] * 8, 1000)
    monkeypatch.setattr(tabular, "_MAX_BYTES", 16 * 16)
    libsvm(train=str(tmp_path / "wide"))  # 16 rows of two pairs of four bytes
    monkeypatch.setattr(tabular, "_MAX_BYTES", 16 * 16 - 1)
    with pytest.raises(
        ValueError, match=r"libsvm: 16 rows of .* columns, of which up to 2 are not zero, would take 0.0"
    ):
        libsvm(train=str(tmp_path / "wide"))


def test_mistaken_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data=libsvm needs data.train=<a file"):
        libsvm()
    with pytest.raises(FileNotFoundError, match=rf"libsvm: no file {tmp_path}/nothing: set data.train to a file"):
        libsvm(train=str(tmp_path / "nothing"))
