"""FEMNIST: which source is taken, and that a mistaken root never means the stand-in."""

import json
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch

import fedsim.data.glyphs as glyphs_module
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.femnist import femnist


def write_leaf(folder: Path, num_users: int = 5) -> dict[str, np.ndarray]:
    """LEAF's femnist in small: a user's number is in the first pixel, and each tests on one sample."""
    pixels = {f"f{i:04d}_{i:02d}": np.full((i + 2, 784), 255) for i in range(num_users)}
    for i, own in enumerate(pixels.values()):
        own[:, 0] = i
        own[:, 28] = np.arange(len(own))  # the first pixel of the second row
    for split, part in (("train", slice(1, None)), ("test", slice(1))):
        (folder / split).mkdir(parents=True)
        data = {
            user: {"x": (own[part] / 255).tolist(), "y": list(range(60, 62))[:1] * len(own[part])}
            for user, own in pixels.items()
        }
        content = {
            "users": list(data),
            "num_samples": [len(d["y"]) for d in data.values()],
            "user_data": data,
        }
        (folder / split / f"all_data_0_niid_0_keep_0_{split}_9.json").write_text(json.dumps(content))
    return pixels


@pytest.mark.parametrize("inside", [".", "data", "femnist", "femnist/data"])
@pytest.mark.parametrize("source", ["auto", "leaf"])
def test_leaf_is_found_in_any_of_its_folders(tmp_path: Path, inside: str, source: str) -> None:
    pixels = write_leaf(tmp_path / inside)
    dataset = femnist(root=str(tmp_path), source=source)
    assert (dataset.name, dataset.source, dataset.num_classes, dataset.notes) == ("femnist", "leaf", 62, ())
    assert list(dataset.client_ids) == list(pixels)
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.train.sizes.tolist() == [1, 2, 3, 4, 5]
    assert dataset.test is not None
    assert dataset.test.sizes.tolist() == [1] * 5
    last = dataset.train.inputs[int(dataset.train.rows(4)[2])]
    assert (last[0, 0, 0], last[0, 1, 0], last[0, 0, 1]) == (4, 3, 255)
    assert dataset.train.targets.unique().tolist() == [60]
    assert dataset.preprocess(dataset.train.inputs).max() == 1


def test_some_of_leafs_writers_keep_their_own_samples(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    dataset = femnist(root=str(tmp_path), num_clients=3, seed=4, cache_dir=str(tmp_path / "cache"))
    assert dataset.num_clients == 3
    assert list(dataset.client_ids) == sorted(dataset.client_ids)
    assert dataset.test is not None
    for split in (dataset.train, dataset.test):
        for client, name in enumerate(dataset.client_ids):
            first_pixels = split.inputs[torch.from_numpy(split.rows(client)), 0, 0, 0]
            assert first_pixels.unique().tolist() == [int(name[1:5])]
    assert dataset.train.sizes.tolist() == [int(name[1:5]) + 1 for name in dataset.client_ids]
    assert not (tmp_path / ".fedsim").exists()


def test_a_test_fraction_that_leaf_cannot_follow_is_noted(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    notes = femnist(root=str(tmp_path), test_fraction=0.5).notes
    assert notes == ("data.test_fraction=0.5 is ignored: LEAF's files are split already",)


def test_without_a_root_the_stand_in_is_drawn_and_its_warning_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing takes seconds and has tests of its own; the autospec holds the call to the real signature.
    split = Split(inputs=torch.zeros(1, 1, 28, 28, dtype=torch.uint8), targets=torch.zeros(1, dtype=torch.int64))
    drawn = FederatedDataset(name="femnist", train=split, num_classes=62, source="glyphs", notes=("a stand-in",))
    glyphs = create_autospec(glyphs_module.glyphs, return_value=drawn)
    monkeypatch.setattr(glyphs_module, "glyphs", glyphs)
    assert femnist() is drawn
    glyphs.assert_called_with(num_clients=3550, seed=0, test_fraction=0.1, cache_dir=None)
    given = {"num_clients": 3, "seed": 5, "test_fraction": 0.2, "cache_dir": str(tmp_path)}
    dataset = femnist(source="glyphs", root="/nowhere", **given)
    glyphs.assert_called_with(**given)
    ignored = "data.root=/nowhere is ignored: data.source=glyphs reads no files"
    assert dataset.notes == ("a stand-in", ignored)


@pytest.mark.parametrize("source", ["auto", "leaf"])
def test_a_root_without_leaf_is_an_error(tmp_path: Path, source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.root=.*/nowhere does not exist: set it to a folder"):
        femnist(root=str(tmp_path / "nowhere"), source=source)
    with pytest.raises(FileNotFoundError, match=r"no train/ of LEAF's femnist in .*: set data.root") as caught:
        femnist(root=str(tmp_path), source=source)
    for folder in (tmp_path, tmp_path / "data", tmp_path / "femnist", tmp_path / "femnist" / "data"):
        assert str(folder) in str(caught.value)


def test_mistaken_sources_are_named() -> None:
    with pytest.raises(ValueError, match=r"data.source=leaf needs data.root="):
        femnist(source="leaf")
    with pytest.raises(ValueError, match=r"data.source='LEAF' is unknown: set it to one of auto, leaf, glyphs"):
        femnist(source="LEAF")
