"""Datasets that the Hugging Face library loads, from local files written by the tests."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.data import hub as hub_module
from fedsim.data.federated import FederatedDataset
from fedsim.data.hub import hub

WriteParquet = Callable[[Path, dict[str, Any]], None]


@pytest.fixture
def load(tmp_path: Path, write_parquet: WriteParquet) -> Callable[..., FederatedDataset]:
    """Writes columns to a parquet file and loads it with the given options."""

    def run(columns: dict[str, Any], *, test: dict[str, Any] | None = None, **options: Any) -> FederatedDataset:
        files = {"train": str(tmp_path / "train.parquet")}
        if not (tmp_path / "train.parquet").exists():
            write_parquet(tmp_path / "train.parquet", columns)
        if test is not None:
            write_parquet(tmp_path / "test.parquet", test)
            files["test"] = str(tmp_path / "test.parquet")
        return hub(path="parquet", data_files=files, cache_dir=str(tmp_path / "cache"), **options)

    return run


def png(value: int, size: tuple[int, int] = (4, 3)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


def table(num_rows: int = 20) -> dict[str, Any]:
    rows = np.arange(num_rows)
    return {
        "pixels": [[float(row), float(row) / 2, 0.0] for row in rows],
        "label": (rows % 3).tolist(),
        "writer_id": [f"w{row % 4}" for row in rows],
    }


def test_a_column_names_the_clients(load: Callable[..., FederatedDataset]) -> None:
    dataset = load(table(), client_column="writer_id", test_fraction=0.4)
    assert (dataset.name, dataset.source, dataset.num_classes) == ("parquet", "hub", 3)
    assert list(dataset.client_ids) == ["w0", "w1", "w2", "w3"]
    assert dataset.test is not None
    assert dataset.train.sizes.tolist() == [3] * 4
    assert dataset.test.sizes.tolist() == [2] * 4
    seen = []
    for split in (dataset.train, dataset.test):
        for client in range(4):
            for row in split.rows(client).tolist():
                number = int(split.inputs[row, 0])
                assert (number % 4, number % 3) == (client, int(split.targets[row]))
                assert split.inputs[row].tolist() == [number, number / 2, 0.0]
                seen.append(number)
    assert sorted(seen) == list(range(20))
    assert dataset.train.inputs.dtype == torch.float32


def test_without_a_client_column_nobody_owns_the_samples(load: Callable[..., FederatedDataset]) -> None:
    columns = table()
    del columns["writer_id"]
    dataset = load(columns)
    assert not dataset.train.owned
    assert dataset.test is not None
    assert (dataset.train.num_samples, dataset.test.num_samples) == (18, 2)
    whole = load(columns, test_fraction=0)
    assert whole.test is None
    assert whole.train.inputs[:, 0].tolist() == list(range(20))


def test_single_numbers_of_several_columns_and_labels_that_are_names(load: Callable[..., FederatedDataset]) -> None:
    columns = {"age": [30, 40, 50], "pay": [1.5, 2.5, 3.5], "kind": ["dog", "cat", "dog"], "who": [2, 10, 2]}
    options = {"target_column": "kind", "client_column": "who", "test_fraction": 0}
    dataset = load(columns, **options)
    assert dataset.train.inputs.tolist() == [[30, 1.5], [50, 3.5], [40, 2.5]]  # client after client
    assert dataset.train.targets.tolist() == [1, 1, 0]
    assert list(dataset.client_ids) == ["2", "10"]
    assert dataset.train.rows(0).tolist() == [0, 1]
    dataset = load(columns, input_column=["pay"], **options)
    assert dataset.input_shape == (1,)


@pytest.mark.parametrize(("targets", "size"), [("numbers", 1), ("labels", 2)])
def test_targets_may_be_numbers_or_labels(load: Callable[..., FederatedDataset], targets: str, size: int) -> None:
    wanted = {"numbers": [1.5, 2.0, 7.0, -3.0], "labels": [[0, 1], [1, 1], [0, 0], [1, 0]]}[targets]
    columns = {"age": [30, 40, 50, 60], "y": wanted, "who": [2, 2, 10, 10]}
    dataset = load(columns, target_column="y", client_column="who", test_fraction=0, targets=targets)
    assert dataset.train.targets.tolist() == wanted
    assert (dataset.objective.targets, dataset.num_classes) == (targets, size)
    with pytest.raises(ValueError, match=r"data\.targets must be classes, numbers, labels, got 'words'"):
        load(columns, targets="words")


def test_images_become_bytes_and_are_decoded_once(
    load: Callable[..., FederatedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the hub has them: a struct of bytes and path, which the schema says is an image.
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {"image": ImageFeature(), "character": ClassLabel(names=["a", "b", "c", "d"]), "writer": Value("string")}
    )
    rows = [
        {"image": {"bytes": png(row), "path": None}, "character": row % 3, "writer": "uv"[row % 2]} for row in range(10)
    ]
    data = Dataset.from_list(rows, features=features).with_format("arrow")[:]
    columns = {name: data.column(name) for name in data.column_names}
    metadata = {"schema": data.schema.metadata}
    monkeypatch.setattr(hub_module, "_BATCH", 3)
    options = {"client_column": "writer", "target_column": "character", "metadata": metadata}
    dataset = load_with_schema(load, columns, **options)
    assert (dataset.num_classes, dataset.input_shape) == (4, (1, 3, 4))
    assert dataset.train.inputs.dtype == torch.uint8
    values = dataset.train.inputs.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    numbers = values[:, 0].tolist()
    assert dataset.train.targets.tolist() == [number % 3 for number in numbers]
    assert [number % 2 for number in numbers] == [0] * 4 + [1] * 4
    monkeypatch.setattr(hub_module, "decode_all", None)
    assert load_with_schema(load, columns, **options).fingerprint() == dataset.fingerprint()


def load_with_schema(load: Any, columns: dict[str, Any], *, metadata: Any, **options: Any) -> FederatedDataset:
    import pyarrow

    fields = [pyarrow.field(name, column.type) for name, column in columns.items()]
    whole = pyarrow.table(list(columns.values()), schema=pyarrow.schema(fields, metadata=metadata["schema"]))
    return load(whole, **options)


def test_a_split_of_the_data_is_kept(load: Callable[..., FederatedDataset]) -> None:
    test = {name: values[:3] for name, values in table().items()}
    dataset = load(table(), test=test, test_split="test", client_column="writer_id")
    assert dataset.test is not None
    assert dataset.train.sizes.tolist() == [5] * 4
    assert dataset.test.sizes.tolist() == [1, 1, 1, 0]
    assert dataset.notes == ()


def test_test_samples_of_strangers_are_central_and_that_is_said(load: Callable[..., FederatedDataset]) -> None:
    test = {**{name: values[:2] for name, values in table().items()}, "writer_id": ["w1", "w9"]}
    dataset = load(table(), test=test, test_split="test", client_column="writer_id")
    assert dataset.test is not None
    assert not dataset.test.owned
    assert dataset.notes == ("the test set is central: not every writer_id of split test is in split train",)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            table(),
            {"client_column": "writer"},
            "has no column 'writer': set data.client_column to one of pixels, label, w",
        ),
        (
            table(),
            {"target_column": "y"},
            "has no column 'y': set data.target_column to one of pixels, label, writer_id",
        ),
        (table(), {"input_column": "x"}, "has no column 'x': set data.input_column to one of"),
        (table(), {"input_column": "writer_id"}, "column 'writer_id' holds text: turn it into numbers first"),
        (table(), {"input_column": ["pixels", "label"]}, "the columns pixels, label are not all single numbers"),
        (table(), {"split": "tain"}, "has no split 'tain': set data.split to one of train"),
        (
            table(),
            {"test_split": "test", "client_column": "writer_id"},
            "has no split 'test': set data.test_split to one of train",
        ),
        (
            {**table(3), "pixels": [[1.0], [1.0, 2.0], [3.0]]},
            {"client_column": "writer_id"},
            "column 'pixels' has rows of unequal lengths: cut or pad them to one shape",
        ),
        (
            {**table(3), "writer_id": ["a", None, "b"]},
            {"client_column": "writer_id"},
            "column 'writer_id' has missing or mixed values: repair or drop those rows",
        ),
        (
            {**table(3), "pixels": [[1.0, 2.0], [float("nan"), 0.0], [0.0, 0.0]]},
            {"client_column": "writer_id", "test_fraction": 0},
            "sample 1 holds a number that is not a finite float32",
        ),
        (
            {**table(3), "label": [0.5, 1.0, 2.0]},
            {"client_column": "writer_id"},
            "no whole numbers: number the classes",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_column(
    load: Callable[..., FederatedDataset], columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(columns, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    options = {"path": "parquet", "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(
        ValueError, match=rf"cannot load data.path=parquet, data.data_files={tmp_path}/no.parquet \(.+\)"
    ):
        hub(data_files=str(tmp_path / "no.parquet"), **options)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(
        ValueError, match=r"data.data_files=.*bad.parquet \(.+\): check both, and the network"
    ) as caught:
        hub(data_files=str(tmp_path / "bad.parquet"), **options)
    assert "\n" not in str(caught.value)
    (tmp_path / "empty.csv").write_text("x,label\n")
    with pytest.raises(ValueError, match=r"empty.csv \(.*no data!?\): check both"):
        hub(path="csv", data_files=str(tmp_path / "empty.csv"), cache_dir=options["cache_dir"])
    with pytest.raises(ValueError, match=r"data=hub needs data.path, a dataset of the hub or a format"):
        hub()
