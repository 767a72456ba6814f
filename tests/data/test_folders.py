"""Images in folders by client."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.data.folders import folders

WriteFolders = Callable[[Path], None]


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def test_a_folder_is_a_client_and_its_folders_are_classes(tmp_path: Path, write_folders: WriteFolders) -> None:
    root = tmp_path / "images"
    write_folders(root)
    (root / "notes.txt").write_text("not a client")
    (root / "ann" / "circle" / "notes.txt").write_text("not an image")
    dataset = folders(root=str(root), cache_dir=str(tmp_path / "cache"))
    assert (dataset.name, dataset.source, list(dataset.client_ids)) == ("folders", "folders", ["ann", "bob"])
    assert (dataset.num_classes, dataset.input_shape) == (2, (3, 5, 6))
    assert dataset.test is not None
    assert dataset.train.sizes.tolist() == [7, 5]
    assert dataset.test.sizes.tolist() == [1, 1]
    found = {}
    for split in (dataset.train, dataset.test):
        for client, name in enumerate(dataset.client_ids):
            for row in split.rows(client).tolist():
                label = ("circle", "square")[int(split.targets[row])]
                found[split.inputs[row].numpy().tobytes()] = (name, label)
    files = [file for file in root.rglob("*.png")]
    assert found == {pixels(file).tobytes(): (file.parts[-3], file.parts[-2]) for file in files}
    values = dataset.preprocess(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 5, 6))
    torch.testing.assert_close(values[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_a_split_on_the_disk_is_kept(tmp_path: Path, write_folders: WriteFolders) -> None:
    write_folders(tmp_path / "train")
    (tmp_path / "test" / "bob" / "triangle").mkdir(parents=True)
    Image.new("RGB", (6, 5), (9, 9, 9)).save(tmp_path / "test" / "bob" / "triangle" / "one.jpg")
    dataset = folders(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert dataset.test is not None
    assert dataset.train.sizes.tolist() == [8, 6]
    assert dataset.test.sizes.tolist() == [0, 1]
    assert (dataset.num_classes, dataset.test.targets.tolist()) == (3, [2])
    (tmp_path / "test" / "eve" / "circle").mkdir(parents=True)
    Image.new("RGB", (6, 5)).save(tmp_path / "test" / "eve" / "circle" / "one.png")
    with pytest.raises(ValueError, match=rf"folders: {tmp_path}/test/eve has no folder in {tmp_path}/train"):
        folders(root=str(tmp_path))


def test_images_are_scaled_and_made_grey_on_request(tmp_path: Path) -> None:
    for client, side in (("ann", 4), ("bob", 9)):
        (tmp_path / client / "one").mkdir(parents=True)
        Image.new("RGB", (side, side), (255, 0, 0)).save(tmp_path / client / "one" / "red.png")
    options = {"root": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"bob/one/red.png has 9 x 9 pixels, the first image 4 x 4: set data.image_si"):
        folders(**options)
    dataset = folders(image_size=6, channels=1, **options)
    assert dataset.test is None  # the only sample of a client is trained on
    # Rec. 601 luma of pure red: 0.299 * 255 = 76.
    assert torch.equal(dataset.train.inputs, torch.full((2, 1, 6, 6), 76, dtype=torch.uint8))


def test_images_are_decoded_once_until_they_change(
    tmp_path: Path, write_folders: WriteFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "images")
    options = {"root": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    first = folders(**options)
    with monkeypatch.context() as patch:
        patch.setattr("fedsim.data.images.decode_all", None)
        assert folders(**options).fingerprint() == first.fingerprint()
    Image.new("RGB", (6, 5)).save(tmp_path / "images" / "ann" / "circle" / "0.png")
    assert folders(**options).fingerprint() != first.fingerprint()


def test_mistakes_name_the_file_and_the_fix(tmp_path: Path, write_folders: WriteFolders) -> None:
    with pytest.raises(ValueError, match=r"data=folders needs data.root=<folder with CLIENT/CLASS/image"):
        folders()
    with pytest.raises(FileNotFoundError, match=rf"folders: no folder {tmp_path}/nothing: set data.root"):
        folders(root=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=rf"folders: no image is at {tmp_path}/CLIENT/CLASS/: set data.root to a fol"):
        folders(root=str(tmp_path))
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"data.channels is 2: choose 1 \(grey\), 3 \(colour\)"):
        folders(root=str(tmp_path), channels=2)
    with pytest.raises(ValueError, match=r"data.image_size is 0: choose the pixels a side"):
        folders(root=str(tmp_path), image_size=0)
    damaged = tmp_path / "bob" / "circle" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(
        ValueError, match=rf"{damaged} cannot be read as an image \(.+\): repair or remove it"
    ) as caught:
        folders(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]  # nothing half-written


def test_a_list_of_classes_holds_for_those_without_images_too(tmp_path: Path, write_folders: WriteFolders) -> None:
    write_folders(tmp_path / "images")  # circles and squares
    settings = {"root": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    dataset, plain = folders(classes=["triangle", "square", "circle"], **settings), folders(**settings)
    assert dataset.num_classes == 3
    assert torch.equal(dataset.train.targets, 2 - plain.train.targets)
    with pytest.raises(ValueError, match=r"has a class 'square', which data\.classes does not name"):
        folders(classes=["circle"], **settings)
