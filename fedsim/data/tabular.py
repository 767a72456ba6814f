"""Tables in LIBSVM's format: Adult, Covtype and RCV1 from LIBSVM's collection, and any such file.

scikit-learn reads the files, also .gz and .bz2. Nobody owns the rows: a partition deals them. A sparse table stays
sparse: a row is kept as its few (column, value) pairs, and `Scatter` makes a minibatch dense when it is used.
"""

import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.data.arrays import from_arrays
from fedsim.data.cache import cache_root
from fedsim.data.federated import FederatedDataset
from fedsim.data.held_out import hold_out
from fedsim.files import write_atomically
from fedsim.objective import of_targets

COLLECTION = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary"
_TIMEOUT = 60  # seconds without an answer
_MAX_BYTES = 4 << 30
_MAX_COLUMNS = 1 << 24  # float32 counts exactly up to here


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Rows of (column, value) pairs (B, 2, M) float32 to dense ones (B, num_columns) float32; pairs (0, 0) fill up."""

    num_columns: int

    def __call__(self, inputs: Tensor) -> Tensor:
        dense = inputs.new_zeros(len(inputs), self.num_columns)
        return dense.scatter_add_(1, inputs[:, 0].long(), inputs[:, 1])


def adult(*, root: str | None = None, download: bool = False) -> FederatedDataset:
    """Adult (census income) as LIBSVM's a9a: (N, 123) float32 of zeros and ones; 32,561 rows, and 16,281 for tests.

    Args:
        root: folder that has or gets `a9a` and `a9a.t`; None is `libsvm` in the cache root.
        download: fetch what is missing.

    Raises:
        FileNotFoundError: a file is missing and `download` is false.
        ValueError: a file is damaged, or the download failed.
    """
    train, test = (_file("adult", name, root, download) for name in ("a9a", "a9a.t"))
    return _read("adult", train, test, columns=123, again=_AGAIN)


def covtype(
    *, root: str | None = None, download: bool = False, test_fraction: float = 0.25, seed: int = 0
) -> FederatedDataset:
    """Covtype (forest cover, two classes, scaled): (N, 54) float32; 581,012 rows.

    Args:
        root: folder that has or gets `covtype.libsvm.binary.scale.bz2`; None is `libsvm` in the cache root.
        download: fetch what is missing.
        test_fraction: share of the rows held out for tests, in [0, 1); NIID-Bench's is 0.25.
        seed: of that draw.

    Raises:
        FileNotFoundError: the file is missing and `download` is false.
        ValueError: an argument is out of range, the file is damaged, or the download failed.
    """
    file = _file("covtype", "covtype.libsvm.binary.scale.bz2", root, download)
    return _read("covtype", file, None, columns=54, test_fraction=test_fraction, seed=seed, again=_AGAIN)


def rcv1(
    *, root: str | None = None, download: bool = False, test_fraction: float = 0.25, seed: int = 0
) -> FederatedDataset:
    """RCV1 (news, two classes), the 20,242 rows for training: (N, 47236) float32, kept sparse.

    LIBSVM's 677,399 rows for tests are left aside, as in NIID-Bench; `libsvm` reads them.

    Args:
        root: folder that has or gets `rcv1_train.binary.bz2`; None is `libsvm` in the cache root.
        download: fetch what is missing.
        test_fraction: share of the rows held out for tests, in [0, 1); NIID-Bench's is 0.25.
        seed: of that draw.

    Raises:
        FileNotFoundError: the file is missing and `download` is false.
        ValueError: an argument is out of range, the file is damaged, or the download failed.
    """
    file = _file("rcv1", "rcv1_train.binary.bz2", root, download)
    return _read("rcv1", file, None, columns=47236, test_fraction=test_fraction, seed=seed, again=_AGAIN)


def libsvm(
    *,
    train: str | None = None,
    test: str | None = None,
    test_fraction: float = 0.25,
    seed: int = 0,
    targets: str = "classes",
) -> FederatedDataset:
    """Any table in LIBSVM's format: inputs (N, columns) float32.

    Args:
        train: the file, possibly .gz or .bz2.
        test: a file of test rows; None holds out a part of `train`.
        test_fraction: that part, in [0, 1); 0 for no test set.
        seed: of that draw.
        targets: "classes": the labels, in ascending order, are the classes 0, 1, ...; "numbers": they are numbers, and
            the objective is the squared error; "labels": a row has any number of them, with commas between, and the
            objective is the binary cross-entropy of (L,) zeros and ones, in ascending order of the labels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument is out of range, a file is damaged, or the table is too large to be kept in memory.
    """
    if train is None:
        raise ValueError("data=libsvm needs data.train=<a file in LIBSVM's format>")
    of_targets(targets)
    return _read(
        "libsvm",
        _own_file("train", train),
        None if test is None else _own_file("test", test),
        test_fraction=test_fraction,
        seed=seed,
        again="repair it",
        targets=targets,
    )


def _own_file(setting: str, name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"libsvm: no file {path}: set data.{setting} to a file in LIBSVM's format")
    return path


_AGAIN = "delete it and set data.download=true"


def _file(dataset: str, name: str, root: str | None, download: bool) -> Path:
    """The file `name`, or the same without its compression, in the set's folder; fetched where it has to be."""
    folder = cache_root() / "libsvm" if root is None else Path(root).expanduser()
    for path in (folder / name, folder / name.removesuffix(".bz2")):
        if path.is_file():
            return path
    if not download:
        raise FileNotFoundError(f"{dataset}: no {name} in {folder}: set data.root=... or data.download=true")
    url = f"{COLLECTION}/{name}"

    def fetch(temporary: Path) -> None:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, temporary.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, fetch)
    except OSError as error:  # URLError is one
        raise ValueError(
            f"{dataset}: cannot download {url} into {folder} ({_reason(error)}): check the network and that the folder "
            "can be written, or set data.root to a folder that has the file"
        ) from error
    return folder / name


def _read(
    name: str,
    train: Path,
    test: Path | None,
    *,
    columns: int | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    again: str,
    targets: str = "classes",
) -> FederatedDataset:
    """`columns`: of the whole set, which a file need not reach; None: as many as the files have."""
    tables = [_parse(name, file, columns, again, targets) for file in (train, test) if file is not None]
    num_columns = columns or max(rows.shape[1] for rows, _ in tables)
    classes = np.unique(_flat(tables[0][1]))
    parts: list[tuple[Any, np.ndarray]] = []
    for file, (rows, labels) in zip((train, test), tables, strict=False):
        known = np.isin(_flat(labels), classes)
        if targets != "numbers" and not known.all():
            strange = _flat(labels)[~known][0]
            raise ValueError(f"{name}: {file} has the label {strange:g}, which no row of {train} has: {again}")
        parts.append((rows, _targets(labels, classes, targets)))
    if test is None:
        held = hold_out(len(parts[0][1]), None, test_fraction, seed)
        parts = [(parts[0][0][rows], parts[0][1][rows]) for rows in (held.train, held.test) if len(rows)]
    stored, preprocess = _stored([rows for rows, _ in parts], num_columns, name)
    arrays = [(inputs, labels) for inputs, (_, labels) in zip(stored, parts, strict=True)]
    return from_arrays(
        *arrays[0],
        test=arrays[1] if len(arrays) > 1 else None,
        name=name,
        num_classes=1 if targets == "numbers" else len(classes),
        objective=of_targets(targets),
        preprocess=preprocess,
        source="libsvm",
    )


def _flat(labels: Any) -> np.ndarray:
    """All labels of all rows."""
    return labels if isinstance(labels, np.ndarray) else np.concatenate([np.zeros(0), *map(np.asarray, labels)])


def _targets(labels: Any, classes: np.ndarray, kind: str) -> np.ndarray:
    """(N,), of labels the numbers of their classes; (N, L) uint8 where a row has several."""
    if kind != "labels":
        return labels if kind == "numbers" else np.searchsorted(classes, labels)
    found = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    rows = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    found[rows, np.searchsorted(classes, _flat(labels))] = 1
    return found


def _parse(name: str, file: Path, columns: int | None, again: str, targets: str) -> tuple[Any, Any]:
    """A SciPy CSR matrix (N, D) float32 and labels, (N,) float64 or N tuples; columns count from 0."""
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        raise ValueError(f"data={name} needs scikit-learn: pip install '.[tabular]' in fedsim's folder") from error
    try:
        rows, labels = load_svmlight_file(str(file), n_features=columns, multilabel=targets == "labels")[:2]
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{name}: {file} is damaged or not in LIBSVM's format ({_reason(error)}): {again}") from error
    if not rows.shape[0]:
        raise ValueError(f"{name}: {file} holds no rows: {again}")
    bad = ~np.isfinite(rows.data)
    if bad.any():
        row = int(np.searchsorted(rows.indptr, np.argmax(bad), side="right")) - 1
        raise ValueError(f"{name}: row {row + 1} of {file} holds a number that is not finite: {again}")
    return rows.astype(np.float32), labels


def _stored(tables: Sequence[Any], num_columns: int, name: str) -> tuple[list[np.ndarray], Any]:
    """Dense rows, or rows of pairs where these are smaller; and what makes a minibatch of them."""
    longest = max(int(np.diff(table.indptr).max()) for table in tables)
    num_rows = sum(table.shape[0] for table in tables)
    size = 4 * num_rows * min(num_columns, 2 * longest)
    if size > _MAX_BYTES or num_columns > _MAX_COLUMNS:
        raise ValueError(
            f"{name}: {num_rows:,} rows of {num_columns:,} columns, of which up to {longest:,} are not zero, would "
            f"take {size / 2**30:.1f} GiB: use fewer rows or shorter ones (the limit is {_MAX_BYTES >> 30} GiB)"
        )
    if num_columns <= 2 * longest:
        return [_padded_columns(table.toarray(), num_columns) for table in tables], None
    return [_pairs(table, longest) for table in tables], Scatter(num_columns=num_columns)


def _padded_columns(dense: np.ndarray, num_columns: int) -> np.ndarray:
    return np.pad(dense, ((0, 0), (0, num_columns - dense.shape[1])))


def _pairs(table: Any, width: int) -> np.ndarray:
    """(N, 2, width) float32: the columns and the values of each row, then zeros."""
    counts = np.diff(table.indptr)
    row = np.repeat(np.arange(table.shape[0]), counts)
    place = np.arange(len(row)) - np.repeat(table.indptr[:-1], counts)
    pairs = np.zeros((table.shape[0], 2, width), dtype=np.float32)
    pairs[row, 0, place] = table.indices
    pairs[row, 1, place] = table.data
    return pairs


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
