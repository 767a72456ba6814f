"""Any dataset of the Hugging Face `datasets` library, from its hub or from local files; one column names the client.

Images are decoded once, into a packed cache that is keyed by the library's fingerprint of the data; tables of numbers
are read as they are.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.data.arrays import from_arrays
from fedsim.data.cache import cache_root, create_array, key_of, packed
from fedsim.data.federated import FederatedDataset, Normalise
from fedsim.data.held_out import hold_out
from fedsim.data.images import Form, decode_all, form_of
from fedsim.objective import of_targets

FORMAT = 1  # of the packed arrays: raise it whenever what is packed changes
_BATCH = 1000
_SINGLE = ("Value", "ClassLabel")  # the library's names of columns with one number a row


def hub(
    *,
    path: str | None = None,
    name: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    revision: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    client_column: str | None = None,
    input_column: str | Sequence[str] | None = None,
    target_column: str = "label",
    targets: str = "classes",
    image_size: int | None = None,
    channels: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """A dataset as `datasets.load_dataset(path, name, data_files=..., data_dir=..., revision=...)` finds it.

    Args:
        path: a dataset of the hub ("flwrlabs/femnist"), a folder, or a format ("parquet", "csv", "json",
            "imagefolder") with `data_files`.
        name, data_files, data_dir, revision: as the library has them.
        split: of the training samples.
        test_split: of the test samples, which stay with their clients if all of those have training samples, and are
            central otherwise; None holds out a share of each client's (without clients: of all) samples.
        client_column: names each sample's client; None: nobody owns the samples, and a partition deals them.
        input_column: an image, a list of numbers (all of one shape), or several columns of single numbers; None: all
            columns but those of client and target.
        target_column: classes as numbers, names (which are numbered in ascending order) or a ClassLabel; or what
            `targets` says.
        targets: "classes"; "numbers", one or a list, for which the objective is the squared error; or "labels", lists
            of zeros and ones, for which it is the binary cross-entropy.
        image_size: pixels a side to which images are scaled; None: they have equal sizes already.
        channels: of images, 1 for grey, 3 for colour; None: as the first one.
        test_fraction: the share held out, in [0, 1).
        seed: of that draw.
        cache_dir: folder of the caches, the library's own included; None for the defaults of both.

    Returns:
        Images (N, channels, height, width) uint8, or numbers (N, ...) as stored, float64 as float32; targets (N,)
        int64.

    Raises:
        ValueError: the data cannot be loaded, a column or split is missing or of the wrong kind, or rows are ragged.
    """
    objective = of_targets(targets)
    if path is None:
        raise ValueError("data=hub needs data.path, a dataset of the hub or a format such as parquet")
    loaded = _load(path, cache_dir, name=name, data_files=data_files, data_dir=data_dir, revision=revision)
    train = _split(loaded, path, split, "split")
    features = train.features
    for setting, column in (("client_column", client_column), ("target_column", target_column)):
        if column is not None and column not in features:
            raise ValueError(_no_column(path, setting, column, features))
    inputs = _input_columns(path, input_column, features, {client_column, target_column})
    tables = [train] if test_split is None else [train, _split(loaded, path, test_split, "test_split")]
    if tables[-1].features.keys() != features.keys():
        raise ValueError(
            f"data.path={path}: split {test_split} has columns {', '.join(tables[-1].features)}, split {split} has "
            f"{', '.join(features)}: they must be alike"
        )
    owners = [None if client_column is None else _column(table, client_column, path) for table in tables]
    found, num_classes = _targets(tables, target_column, path)
    whole = [_Part(i, np.arange(len(tables[i])), found[i], owners[i]) for i in range(len(tables))]
    notes: tuple[str, ...] = ()
    if test_split is None:
        parts = _held_out(whole[0], test_fraction, seed)
    else:
        parts = whole
        if not _all_known(owners):
            notes = (f"the test set is central: not every {client_column} of split {test_split} is in split {split}",)
            parts = [whole[0], whole[1]._replace(owners=None)]
    if type(features[inputs[0]]).__name__ == "Image":
        form, stored = _images(tables, parts, inputs[0], image_size, channels, cache_dir)
        preprocess = Normalise(mean=(0.5,) * form.channels, std=(0.5,) * form.channels)
    else:
        numbers = [_numbers(table, inputs, path) for table in tables]
        stored, preprocess = [numbers[part.table][part.rows] for part in parts], None
    arrays = [
        (inputs, part.targets) if part.owners is None else (inputs, part.targets, part.owners)
        for inputs, part in zip(stored, parts, strict=True)
    ]
    return from_arrays(
        *arrays[0],
        test=arrays[1] if len(arrays) > 1 else None,
        name=name or Path(path).name,
        num_classes=num_classes,
        objective=objective,
        preprocess=preprocess,
        source="hub",
        notes=notes,
    )


class _Part(NamedTuple):
    """Rows of a table, for training or tests: its number, and row numbers, targets and owners, each (n, ...)."""

    table: int
    rows: np.ndarray
    targets: np.ndarray
    owners: np.ndarray | None


def _held_out(whole: _Part, fraction: float, seed: int) -> list[_Part]:
    """The rows for training and, unless there are none, those for tests; client after client."""
    owners = whole.owners
    numbers = None if owners is None else np.unique(owners, return_inverse=True)[1]
    held = hold_out(len(whole.rows), numbers, fraction, seed)
    return [
        _Part(whole.table, rows, whole.targets[rows], None if owners is None else owners[rows])
        for rows in (held.train, held.test)
        if len(rows)
    ]


def _all_known(owners: Sequence[np.ndarray | None]) -> bool:
    """Whether every client of the test samples has training samples."""
    train, test = owners
    return train is None or test is None or set(test.tolist()) <= set(train.tolist())


def _load(path: str, cache_dir: str | None, **options: Any) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("data=hub needs the datasets library: pip install '.[hub]' in fedsim's folder") from error
    own = None if cache_dir is None else str(cache_root(cache_dir) / "huggingface")
    try:
        return datasets.load_dataset(path, cache_dir=own, **options)
    except Exception as error:  # the library has many kinds, and those of the formats' readers
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(
            f"cannot load data.path={path}, data.data_files={options['data_files']} ({reason}): check both, and the "
            "network for a dataset of the hub"
        ) from error


def _split(loaded: Any, path: str, split: str, setting: str) -> Any:
    if split not in loaded:
        raise ValueError(f"data.path={path} has no split {split!r}: set data.{setting} to one of {', '.join(loaded)}")
    return loaded[split]


def _no_column(path: str, setting: str, column: str, features: Mapping[str, Any]) -> str:
    return f"data.path={path} has no column {column!r}: set data.{setting} to one of {', '.join(features)}"


def _input_columns(
    path: str, wanted: str | Sequence[str] | None, features: Mapping[str, Any], others: set[str | None]
) -> list[str]:
    """The columns of the inputs: one image, one list, or single numbers."""
    columns = [wanted] if isinstance(wanted, str) else list(wanted or [name for name in features if name not in others])
    for column in columns:
        if column not in features:
            raise ValueError(_no_column(path, "input_column", column, features))
        if _is_text(features[column]):
            raise ValueError(
                f"data.path={path}: column {column!r} holds text: turn it into numbers first, or set "
                f"data.input_column to others of {', '.join(features)}"
            )
    if not columns or (len(columns) > 1 and any(type(features[c]).__name__ not in _SINGLE for c in columns)):
        raise ValueError(
            f"data.path={path}: the columns {', '.join(columns)} are not all single numbers: set data.input_column "
            f"to one of {', '.join(features)}"
        )
    return columns


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string") and type(feature).__name__ == "Value"


def _column(table: Any, column: str, path: str) -> np.ndarray:
    """(N,) numbers or strings."""
    values = np.asarray(table.with_format(None)[column][:])
    if values.dtype.kind == "O" or (values.dtype.kind == "f" and np.isnan(values).any()):
        raise ValueError(f"data.path={path}: column {column!r} has missing or mixed values: repair or drop those rows")
    return values


def _targets(tables: Sequence[Any], column: str, path: str) -> tuple[list[np.ndarray], int | None]:
    """Classes of each table, by number, and how many there are where the data say it; or numbers, or labels."""
    feature = tables[0].features[column]
    values = [_column(table, column, path) for table in tables]
    if type(feature).__name__ == "ClassLabel":
        return values, feature.num_classes
    if not _is_text(feature):
        return values, None
    classes = np.unique(np.concatenate(values))
    return [np.searchsorted(classes, value) for value in values], len(classes)


def _numbers(table: Any, columns: Sequence[str], path: str) -> np.ndarray:
    """(N, ...) of one column, or (N, F) of F columns of single numbers."""
    batches = table.select_columns(list(columns)).with_format("numpy").iter(batch_size=_BATCH)
    pieces: list[np.ndarray] = []
    for batch in batches:
        parts = [np.asarray(batch[column]) for column in columns]
        pieces.append(np.stack(parts, axis=1) if parts[0].ndim == 1 and parts[0].dtype.kind != "O" else parts[0])
        if pieces[-1].dtype.kind == "O" or pieces[-1].shape[1:] != pieces[0].shape[1:]:
            raise ValueError(
                f"data.path={path}: column {columns[0]!r} has rows of unequal lengths: cut or pad them to one shape"
            )
    return np.concatenate(pieces)


def _images(
    tables: Sequence[Any],
    parts: Sequence[_Part],
    column: str,
    image_size: int | None,
    channels: int | None,
    cache_dir: str | None,
) -> tuple[Form, list[np.ndarray]]:
    """Each part's images, memory-mapped."""
    from datasets import Image

    encoded = [table.select_columns([column]).cast_column(column, Image(decode=False)) for table in tables]
    encoded = [encoded[part.table].select(part.rows) for part in parts]
    form = form_of(next(_files(encoded[0], column)), size=image_size, channels=channels)
    content = [FORMAT, column, form.shape, form.resize, [table._fingerprint for table in encoded]]
    build = functools.partial(_pack, tables=encoded, column=column, form=form)
    arrays, _ = packed(cache_root(cache_dir) / "hub" / key_of(content), build)
    return form, [arrays[f"images_{number}"] for number in range(len(parts))]


def _pack(folder: Path, *, tables: Sequence[Any], column: str, form: Form) -> dict[str, Any]:
    for number, table in enumerate(tables):
        array = create_array(folder / f"images_{number}.npy", np.uint8, (len(table), *form.shape))
        decode_all(_files(table, column), form, array)
    return {}


def _files(table: Any, column: str) -> Iterator[Path | bytes]:
    for batch in table.iter(batch_size=_BATCH):
        for image in batch[column]:
            yield Path(image["path"]) if image["bytes"] is None else image["bytes"]
