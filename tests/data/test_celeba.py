"""CelebA by identity, from small photographs and lists in its format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.celeba import celeba
from fedsim.data.federated import FederatedDataset

Load = Callable[..., FederatedDataset]


@pytest.fixture
def load(tmp_path: Path, write_source: Callable[[str], list[str]]) -> Load:
    (option,) = write_source("celeba")
    root = option.removeprefix("data.root=")
    return lambda **options: celeba(root=root, cache_dir=str(tmp_path / "cache"), image_size=8, **options)


def test_a_person_is_a_client_and_those_with_few_photographs_are_left_out(load: Load) -> None:
    dataset = load(test_fraction=0.2)
    # People 1, 2, 3, 4 have 3, 5, 7, 9 photographs of brightness 40, 80, 120, 160, of which every other one smiles.
    assert list(dataset.client_ids) == ["2", "3", "4"]
    assert (dataset.name, dataset.num_classes, dataset.input_shape) == ("celeba", 2, (3, 8, 8))
    assert dataset.test is not None
    assert dataset.train.sizes.tolist() == [4, 6, 7]
    assert dataset.test.sizes.tolist() == [1, 1, 2]
    smiles = np.zeros(3, dtype=int)
    for split in (dataset.train, dataset.test):
        for client, person in enumerate((2, 3, 4)):
            rows = torch.from_numpy(split.rows(client))
            assert (split.inputs[rows].float() - 40 * person).abs().max() <= 2  # JPEG keeps it about
            smiles[client] += int(split.targets[rows].sum())
    assert smiles.tolist() == [2, 3, 4]


def test_settings_reach_their_places(load: Load) -> None:
    assert list(load(min_samples=1).client_ids) == ["1", "2", "3", "4"]
    assert load(attribute="Male").train.targets.sum() == 0
    assert load(test_fraction=0).test is None
    with pytest.raises(ValueError, match=r"CelebA has no attribute 'Simling': set data.attribute to one of Male, Smil"):
        load(attribute="Simling")
    with pytest.raises(ValueError, match=r"nobody in CelebA has data.min_samples=10 photographs: choose fewer"):
        load(min_samples=10)
    with pytest.raises(ValueError, match=r"data.min_samples 0: choose 1 or more"):
        load(min_samples=0)


def test_files_that_are_missing_or_damaged_are_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"celeba: no celeba/img_align_celeba in {tmp_path}/no: set data.root="
    ):
        celeba(root=str(tmp_path / "no"))
    folder = tmp_path / "files" / "celeba"
    (folder / "img_align_celeba" / "000003.jpg").rename(tmp_path / "kept.jpg")
    with pytest.raises(ValueError, match=r"000003.jpg is missing: unpack img_align_celeba.zip anew beside it"):
        load(min_samples=1)
    (tmp_path / "kept.jpg").rename(folder / "img_align_celeba" / "000003.jpg")
    with (folder / "identity_CelebA.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(
        ValueError, match=rf"celeba: the lists in {folder} are damaged \(.+\): delete them and set data.d"
    ):
        load()
    (folder / "identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"celeba: no celeba/identity_CelebA.txt in .*: set data.root="):
        load()
