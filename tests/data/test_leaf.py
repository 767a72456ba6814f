"""LEAF folders, packed: what comes out, what is cached, and what is refused."""

import itertools
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data import leaf, leaf_pack
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.leaf import read_leaf
from fedsim.data.leaf_json import read_file
from fedsim.data.partition import Natural

Users = dict[str, tuple[list[Any], list[Any]]]
# Bytes as LEAF writes them, k/255, of samples of four pixels.
TRAIN: Users = {
    "ann": ([[0.0, 1.0, 51 / 255, 1.0], [1, 0, 0, 128 / 255]], [0, 2]),
    "bob": ([[254 / 255, 1 / 255, 0.0, 0.003922]], [1]),
    "cy": ([[0.2, 0.4, 0.6, 0.8]] * 3, [2, 1, 0]),
}
TEST: Users = {"cy": ([[0.0, 0.2, 0.0, 0.0]], [2]), "ann": ([[1.0] * 4, [0.0] * 4], [1, 0])}


def write(file: Path, users: Users) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in users.items()},
    }
    file.write_text(json.dumps(content))


def read(root: Path, **changes: Any) -> FederatedDataset:
    return read_leaf(root, **{"name": "tiny", "num_classes": 3, "input_shape": (1, 2, 2), **changes})


def rows(split: Split | None, client: int) -> tuple[list[Any], list[int]]:
    assert split is not None
    own = torch.from_numpy(split.rows(client))
    return split.inputs[own].flatten(1).tolist(), split.targets[own].tolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set whose training users stand in two files."""
    write(tmp_path / "set" / "train" / "part_0.json", {name: TRAIN[name] for name in ("ann", "bob")})
    write(tmp_path / "set" / "train" / "part_1.json", {"cy": TRAIN["cy"]})
    write(tmp_path / "set" / "test" / "part_0.json", TEST)
    return tmp_path / "set"


def test_users_become_clients_with_bytes_as_inputs(root: Path) -> None:
    dataset = read(root)
    assert (dataset.name, dataset.source, dataset.num_classes, dataset.notes) == ("tiny", "leaf", 3, ())
    assert list(dataset.client_ids) == ["ann", "bob", "cy"]
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.train.inputs.shape == (6, 1, 2, 2)
    assert dataset.train.targets.dtype == torch.int64
    assert dataset.train.offsets is not None
    assert dataset.train.offsets.tolist() == [0, 2, 3, 6]
    assert rows(dataset.train, 0) == ([[0, 255, 51, 255], [255, 0, 0, 128]], [0, 2])
    assert rows(dataset.train, 1) == ([[254, 1, 0, 1]], [1])  # 0.003922 is 1/255 to six digits
    assert rows(dataset.train, 2) == ([[51, 102, 153, 204]] * 3, [2, 1, 0])


def test_test_users_are_matched_by_name_and_may_be_missing(root: Path) -> None:
    dataset = read(root)
    assert dataset.test is not None
    assert dataset.test.sizes.tolist() == [2, 0, 1]
    assert rows(dataset.test, 0) == ([[255] * 4, [0] * 4], [1, 0])
    assert rows(dataset.test, 1) == ([], [])
    assert rows(dataset.test, 2) == ([[0, 51, 0, 0]], [2])


def test_test_users_in_the_order_of_train_need_no_index(root: Path) -> None:
    write(root / "test" / "part_0.json", {name: TEST[name] for name in ("ann", "cy")})
    dataset = read(root)
    assert dataset.test is not None
    assert dataset.test.order is None
    assert rows(dataset.test, 2) == ([[0, 51, 0, 0]], [2])


def test_preprocess_gives_the_values_of_the_json(root: Path) -> None:
    dataset = read(root)
    assert dataset.input_shape == (1, 2, 2)
    pixels = dataset.preprocess(dataset.train.inputs[:1])
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels.flatten(), torch.tensor([0.0, 1.0, 51 / 255, 1.0]))
    assert read(root, preprocess=lambda inputs: inputs.float()).preprocess(dataset.train.inputs[:1]).max() == 255


@pytest.mark.parametrize("odd", [0.5, -1 / 255, 2.0, 1 / 255 + 1e-5])
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_value_that_is_no_byte_makes_all_inputs_floats(root: Path, split: str, odd: float) -> None:
    write(root / split / "part_9.json", {"dora": ([[0.0, odd, 0.0, 0.0]], [0])})
    write(root / "train" / "part_8.json", {} if split == "train" else {"dora": ([[0.0] * 4], [0])})
    dataset = read(root)
    chosen = dataset.train if split == "train" else dataset.test
    assert dataset.train.inputs.dtype == chosen.inputs.dtype == torch.float32  # type: ignore[union-attr]
    assert rows(chosen, 3) == ([[0.0, pytest.approx(odd, rel=1e-7), 0.0, 0.0]], [0])
    assert rows(dataset.train, 1)[0] == torch.tensor([[254 / 255, 1 / 255, 0, 0.003922]]).tolist()
    assert dataset.input_shape == (1, 2, 2)
    assert torch.equal(dataset.preprocess(dataset.train.inputs), dataset.train.inputs)


def test_inputs_may_be_flat_or_shaped_and_vectors_too(root: Path) -> None:
    shaped = {name: (np.reshape(x, (-1, 1, 2, 2)).tolist(), y) for name, (x, y) in TRAIN.items()}
    (root / "train" / "part_1.json").unlink()
    flat = read(root, input_shape=(4,))
    assert flat.input_shape == (4,)
    write(root / "train" / "part_0.json", shaped)
    assert rows(read(root).train, 0) == rows(flat.train, 0)


def test_users_without_training_samples_are_left_out_and_noted(root: Path) -> None:
    write(root / "train" / "part_2.json", {"empty": ([], [])})
    write(
        root / "test" / "part_1.json",
        {"new": ([[0.0] * 4], [0]), "empty": ([[0.0] * 4], [0]), "bob": ([], [])},
    )
    dataset = read(root)
    assert list(dataset.client_ids) == ["ann", "bob", "cy"]
    assert dataset.notes == ("2 LEAF users have no training samples and are left out",)
    assert dataset.test is not None
    assert dataset.test.sizes.tolist() == [2, 0, 1]
    assert len(dataset.test.inputs) == 3


def test_a_test_split_without_samples_is_empty(root: Path) -> None:
    write(root / "test" / "part_0.json", {"ann": ([], [])})
    dataset = read(root)
    assert dataset.test is not None
    assert dataset.test.inputs.shape == (0, 1, 2, 2)
    assert dataset.test.sizes.tolist() == [0, 0, 0]


def test_num_clients_keeps_a_nested_seeded_draw_in_the_files_order(root: Path) -> None:
    write(root / "train" / "more.json", {f"u{i}": ([[i / 255] * 4] * (i + 1), [0] * (i + 1)) for i in range(20)})
    everyone = read(root)
    names = list(everyone.client_ids)
    for seed in range(3):
        kept = [list(read(root, num_clients=n, seed=seed).client_ids) for n in range(1, 24)]
        assert [len(ids) for ids in kept] == list(range(1, 24))
        assert all(set(fewer) < set(more) for fewer, more in itertools.pairwise(kept))
        assert all(ids == sorted(ids, key=names.index) for ids in kept)
    dataset = read(root, num_clients=9)
    assert dataset.client_ids == read(root, num_clients=9).client_ids
    assert dataset.client_ids != read(root, num_clients=9, seed=1).client_ids
    assert len(dataset.train.inputs) == dataset.train.num_samples
    for client, name in enumerate(dataset.client_ids):
        for split, full in ((dataset.train, everyone.train), (dataset.test, everyone.test)):
            assert rows(split, client) == rows(full, names.index(name))
    for wrong in (0, 24):
        with pytest.raises(ValueError, match=f"data.num_clients={wrong}, but tiny has 23 clients"):
            read(root, num_clients=wrong)


def test_the_second_run_reads_no_json_and_no_content(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(root)
    before = {path: path.stat().st_mtime_ns for path in (root / ".fedsim").rglob("*")}
    assert len([path for path in before if path.name == "meta.json"]) == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(leaf_pack, "read_split", refuse)
    monkeypatch.setattr(leaf.hashlib, "file_digest", refuse)
    second = read(root)
    assert {path: path.stat().st_mtime_ns for path in (root / ".fedsim").rglob("*")} == before
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert rows(first.test, 2) == rows(second.test, 2)
    assert first.client_ids == second.client_ids
    # Another number of classes is another check of the labels, so it is another cache.
    with pytest.raises(AssertionError, match="read again"):
        read(root, num_classes=4)


def test_a_touched_file_is_hashed_and_a_changed_one_packed_again(root: Path) -> None:
    first = read(root)
    file = root / "train" / "part_0.json"
    file.write_text(file.read_text())
    read(root)
    assert len(list((root / ".fedsim").glob("*/meta.json"))) == 1
    file.write_text(file.read_text().replace("[1]", "[2]"))
    changed = read(root)
    assert len(list((root / ".fedsim").glob("*/meta.json"))) == 2
    assert rows(first.train, 1)[1] == [1]
    assert rows(changed.train, 1)[1] == [2]
    (root / "train" / "part_1.json").unlink()
    assert read(root).num_clients == 2


def test_a_file_that_changes_while_it_is_read_leaves_no_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "test" / "part_0.json"

    def grow_then_read(files: list[Path], groups: dict[str, str]) -> Any:
        file.write_text(file.read_text() + " ")
        for path in files:
            yield from read_file(path, groups)

    monkeypatch.setattr(leaf_pack, "read_split", grow_then_read)
    with pytest.raises(ValueError, match=f"{file} changed while it was read: run again"):
        read(root)
    assert not list((root / ".fedsim").glob("*/meta.json"))


def test_a_folder_that_cannot_be_written_is_packed_elsewhere_and_logged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    (root / ".fedsim").touch()  # a file where the folder would be stops root, too, whom permissions do not
    with caplog.at_level(logging.WARNING):
        dataset = read(root)
    assert f"{root} cannot be written: the packed LEAF arrays go to {tmp_path / 'cache' / 'leaf'}" in caplog.text
    assert rows(dataset.train, 1) == ([[254, 1, 0, 1]], [1])
    assert len(list((tmp_path / "cache" / "leaf").glob("*/*/meta.json"))) == 1


def test_a_folder_packed_before_it_was_locked_still_serves(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(root)
    monkeypatch.setattr(leaf.os, "access", lambda *_: False)
    monkeypatch.setattr(leaf_pack, "read_split", None)
    assert read(root).num_clients == 3


def test_cache_dir_keeps_the_source_folder_clean(root: Path, tmp_path: Path) -> None:
    read(root, cache_dir=tmp_path / "cache")
    read(root, cache_dir=tmp_path / "cache")
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]
    assert len(list((tmp_path / "cache").rglob("meta.json"))) == 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[0.0] * 4], [3], "has the label 3, which is no integer from 0 to 2"),
        ([[0.0] * 4], [-1], "has the label -1, which is no integer"),
        ([[0.0] * 4], [1.0], "has the label 1.0, which is no integer"),
        ([[0.0] * 4], [True], "has the label True, which is no integer"),
        ([[0.0] * 4], ["a"], "has the label 'a', which is no integer"),
        ([[0.0] * 4], [None], "has the label None, which is no integer"),
        (
            [[0.0] * 4, [0.0] * 3],
            [0, 0],
            r"has inputs of unequal lengths, where samples of shape \(1, 2, 2\)",
        ),
        ([[0.0] * 4, 0.0], [0, 0], "has inputs of unequal lengths"),
        ([[0.0] * 3], [0], r"has inputs of shape \(3,\), where samples of shape \(1, 2, 2\) \(or flat\)"),
        ([[[0.0], [0.0], [0.0], [0.0]]], [0], r"has inputs of shape \(4, 1\)"),
        ([0.0], [0], r"has inputs of shape \(\)"),
        ([[0.0, 0.0, 0.0, math.nan]], [0], "has inputs that are not finite float32 numbers"),
        ([[0.0, 0.0, math.inf, 0.0]], [0], "has inputs that are not finite float32 numbers"),
        ([[0.0, 0.0, 1e300, 0.0]], [0], "has inputs that are not finite float32 numbers"),
        ([["a", "b", "c", "d"]], [0], "has inputs that are not numbers"),
        ([[0.0, None, 0.0, 0.0]], [0], "has inputs that are not numbers"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_unusable_samples_name_the_file_and_the_user(
    root: Path, split: str, x: list[Any], y: list[Any], message: str
) -> None:
    file = root / split / "odd.json"
    write(file, {"ann" if split == "test" else "odd": (x, y)})
    if split == "test":
        (root / split / "part_0.json").unlink()
    with pytest.raises(ValueError, match=message) as caught:
        read(root)
    assert str(caught.value).startswith(f"{file}: user {'ann' if split == 'test' else 'odd'!r} has")
    assert not list((root / ".fedsim").glob("*/meta.json"))


def test_damaged_json_leaves_no_cache_and_the_repaired_file_packs(root: Path) -> None:
    file = root / "train" / "part_1.json"
    whole = file.read_text()
    file.write_text(whole[:-30])
    with pytest.raises(ValueError, match=f"part_1.json is cut short: it ends at byte {len(whole) - 30}"):
        read(root)
    assert [path.name for path in (root / ".fedsim").iterdir()] == ["files.json"]
    file.write_text(whole)
    assert read(root).num_clients == 3


def test_of_a_set_that_is_split_by_user_no_client_owns_the_test_samples(root: Path) -> None:
    write(root / "test" / "part_0.json", {"dora": TRAIN["ann"]})
    dataset = read(root, num_clients=2)
    assert dataset.notes == ("no user of test has training samples, so that no client owns it",)
    assert dataset.test is not None
    assert not dataset.test.owned
    assert dataset.test.inputs.flatten(1).tolist() == [[0, 255, 51, 255], [255, 0, 0, 128]]
    assert dataset.test.targets.tolist() == TRAIN["ann"][1]


def test_hierarchies_become_groups_and_follow_their_clients(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("part_0", "part_1"):
        file = root / "train" / f"{name}.json"
        content = json.loads(file.read_text())
        content["hierarchies"] = [f"group of {user}" for user in content["users"]]
        file.write_text(json.dumps(content))
    dataset = read(root)
    assert list(dataset.groups) == ["group of ann", "group of bob", "group of cy"]
    some = read(root, num_clients=2)
    assert list(some.groups) == [f"group of {user}" for user in some.client_ids]
    with pytest.raises(ValueError, match="3 clients but 2 groups: give each one, or none"):
        replace(dataset, groups=["a", "b"])
    natural = Natural(num_clients=2)(dataset, seed=3)
    assert list(natural.groups) == [f"group of {user}" for user in natural.client_ids]
    content["hierarchies"].append("too many")
    file.write_text(json.dumps(content))
    assert list(read(root).groups) == []
    assert f"{file}: hierarchies is not a list of 1 groups, one a user, and is left out" in caplog.text


def test_a_third_split_becomes_the_validation_samples(root: Path) -> None:
    write(root / "val" / "part_0.json", {"bob": ([[0.2] * 4], [1]), "ann": TRAIN["ann"]})
    dataset = read(root)
    assert dataset.validation is not None
    assert dataset.validation.sizes.tolist() == [2, 1, 0]
    assert rows(dataset.validation, 1) == ([[51] * 4], [1])


def test_a_training_split_without_samples_is_refused(root: Path) -> None:
    (root / "train" / "part_1.json").unlink()
    write(root / "train" / "part_0.json", {"ann": ([], [])})
    with pytest.raises(ValueError, match=r"train holds no samples: set data.root"):
        read(root)
