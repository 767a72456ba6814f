"""The generated stand-in for FEMNIST, and the cache that holds it."""

import errno
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data import cache as cache_module
from fedsim.data import glyphs as glyphs_module
from fedsim.data.cache import cache_root, create_array, packed
from fedsim.data.federated import FederatedDataset
from fedsim.data.glyphs import glyphs, style
from fedsim.data.letterforms import CHARACTERS, HANDS, NUM_FORMS, TABLE, tables

NUM_WRITERS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def data(folder: Path) -> FederatedDataset:
    return glyphs(num_clients=NUM_WRITERS, cache_dir=folder)


def test_the_dataset_has_the_form_of_femnist(data: FederatedDataset) -> None:
    assert (data.name, data.source, data.num_classes, data.num_clients) == ("femnist", "glyphs", 62, NUM_WRITERS)
    assert data.input_shape == (1, 28, 28)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.targets.dtype == torch.int64
    assert list(data.client_ids[:2]) == ["writer_0000", "writer_0001"]
    assert data.test is not None
    assert data.test.num_clients == NUM_WRITERS
    sizes, held_out = data.train.sizes + data.test.sizes, data.test.sizes
    assert np.abs(held_out - 0.1 * sizes).max() <= 0.5
    (note,) = data.notes
    assert "not real handwriting" in note
    assert "data.source=leaf" in note


def test_dark_ink_on_white_paper_and_the_normalisation_fits(data: FederatedDataset) -> None:
    images = data.train.inputs
    corners = torch.cat([images[..., :2, :2].flatten(), images[..., -2:, -2:].flatten()])
    assert corners.float().mean() > 245
    assert images.flatten(1).amin(dim=1).max() < 150  # every image has ink
    values = data.preprocess(images)
    assert abs(values.mean().item()) < 0.1
    assert abs(values.std().item() - 1) < 0.1


def test_equal_seeds_give_equal_data_and_others_do_not(data: FederatedDataset, folder: Path, tmp_path: Path) -> None:
    again = glyphs(num_clients=NUM_WRITERS, cache_dir=tmp_path)  # drawn anew
    for one, other in ((data.train, again.train), (data.test, again.test)):
        assert one is not None
        assert other is not None
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
        assert np.array_equal(one.sizes, other.sizes)
    different = glyphs(num_clients=1, seed=1, cache_dir=folder)
    assert not torch.equal(different.train.inputs[:20], data.train.inputs[:20])


def test_a_writer_depends_neither_on_the_number_of_writers_nor_on_threads(data: FederatedDataset, folder: Path) -> None:
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        few = glyphs(num_clients=3, cache_dir=folder)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(num_threads)
    assert np.array_equal(few.train.sizes, data.train.sizes[:3])
    assert torch.equal(few.train.inputs, data.train.inputs[: few.train.num_samples])
    assert torch.equal(few.train.targets, data.train.targets[: few.train.num_samples])


def test_the_split_moves_samples_but_does_not_redraw_them(data: FederatedDataset, folder: Path) -> None:
    half = glyphs(num_clients=1, test_fraction=0.5, cache_dir=folder)
    assert half.test is not None
    assert data.test is not None
    both = [
        torch.cat([test.inputs[test.rows(0)], train.inputs[train.rows(0)]])
        for test, train in ((half.test, half.train), (data.test, data.train))
    ]
    assert torch.equal(*both)
    for fraction in (0.0001, 0.9999):
        extreme = glyphs(num_clients=2, test_fraction=fraction, cache_dir=folder)
        assert extreme.test is not None
        assert min(extreme.train.sizes.min(), extreme.test.sizes.min()) == 1


def test_samples_a_writer_are_as_many_as_in_femnist() -> None:
    counts = np.array([glyphs_module._count(0, writer) for writer in range(3550)])
    # LEAF's table for FEMNIST: 3,550 writers, mean 226.83, standard deviation 88.94; the standard error of
    # this mean is 88.94 / sqrt(3550) = 1.5, that of this deviation about 1.2.
    assert abs(counts.mean() - 226.83) < 5
    assert abs(counts.std() - 88.94) < 5
    assert counts.min() >= 20


def test_classes_are_skewed_as_in_femnist(data: FederatedDataset) -> None:
    shares = np.bincount(data.train.targets.numpy(), minlength=62) / data.train.num_samples
    assert abs(shares[:10].sum() - 0.495) < 0.06
    assert abs(shares[10:36].sum() - 0.27) < 0.05
    assert shares.min() > 0
    # A writer's own share of a class p spreads as Beta(150 p, 150 (1 - p)): for all digits together
    # p = 0.495, so the deviation is sqrt(0.25 / 151) = 0.04; for one digit sqrt(0.0495 * 0.95 / 151) = 0.018.
    mixes = np.stack([style(0, writer)[0].mix for writer in range(400)])
    assert abs(mixes[:, :10].sum(axis=1).std() - 0.041) < 0.01
    assert abs(mixes[:, :10].std(axis=0).mean() - 0.0177) < 0.003


def test_no_form_is_a_class_and_no_class_a_form() -> None:
    forms = np.stack([style(0, writer)[0].forms for writer in range(300)])
    for character in range(62):
        assert np.bincount(forms[:, character], minlength=NUM_FORMS).min() > 0
    assert all(len(np.unique(row)) > 1 for row in forms)


def test_sums_are_exact_so_that_no_machine_rounds_them() -> None:
    rng = np.random.default_rng(0)
    coefficients = glyphs_module._on_grid(rng.uniform(-3, 3, (50, 18)), glyphs_module._BITS)
    basis = glyphs_module._basis()
    # A sum of 18 terms of at most 3 has 6 bits before the point and 2 x 9 behind it: float32's 24.
    assert torch.equal((coefficients @ basis).double(), coefficients.double() @ basis.double())
    order = torch.from_numpy(rng.permutation(18))
    assert torch.equal(coefficients[:, order] @ basis[order], coefficients @ basis)


def test_pixels_are_the_same_on_every_machine() -> None:
    # Of the forms that are drawn here: fonts are a matter of matplotlib. When a change of pixels is meant, count up
    # VERSION, and write the new digest here.
    digest = hashlib.sha256()
    for writer in range(12):
        own = style(0, writer)[0]
        images, classes = glyphs_module._draw_writer(0, writer, 40)
        digest.update(images[own.forms[classes] < len(HANDS)].tobytes())
    assert (glyphs_module.VERSION, digest.hexdigest()[:16]) == (2, "817651a8e602bb10")


def test_characters_stay_on_the_paper_and_pens_are_fine_enough() -> None:
    rng = np.random.default_rng(0)
    shape = rng.uniform(glyphs_module._SHAPE_LOW, glyphs_module._SHAPE_HIGH, (NUM_FORMS * 62, 5))
    extents = tables().extents
    linear, offset, size, radius = glyphs_module._placed(shape, rng.uniform(-0.5, 0.5, (len(shape), 2)), extents)
    corners = extents[:, None] * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])  # (forms, 4, 2)
    places = np.einsum("nij,nkj->nki", np.linalg.inv(linear), corners) + offset[:, None]
    assert np.all(np.abs(places) <= 1 - radius[:, None, None] / 14)  # with the width of the line, in half images
    np.testing.assert_allclose(np.linalg.det(linear) ** -0.5, size)
    tall = 14 * extents[:, 1] * np.exp(shape[:, 2])  # half the height in pixels
    assert np.all(radius <= np.maximum(0.7, 0.22 * tall) + 1e-9)
    assert np.all(radius >= 0.6 - 1e-9)
    assert (TABLE, len(CHARACTERS)) == (128, 62)


def test_class_means_are_far_from_enough(data: FederatedDataset) -> None:
    assert data.test is not None
    train, test = (data.preprocess(split.inputs).flatten(1) for split in (data.train, data.test))
    means = torch.stack([train[data.train.targets == label].mean(dim=0) for label in range(62)])
    accuracy = (torch.cdist(test, means).argmin(dim=1) == data.test.targets).float().mean().item()
    assert 0.15 < accuracy < 0.6  # something can be learnt, but not by templates


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clients": 0}, "num_clients is 0: choose 1 to 3550"),
        ({"num_clients": 3551}, "choose 1 to 3550"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0: choose a number between 0 and 1"),
        ({"test_fraction": 1.0}, "between 0 and 1"),
        ({"seed": -1}, "seed is -1: choose 0 or more"),
    ],
)
def test_errors_name_the_fix(arguments: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        glyphs(cache_dir=tmp_path, **arguments)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_the_cache_is_used_again(data: FederatedDataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(glyphs_module, "_draw_all", fail)
    again = glyphs(num_clients=NUM_WRITERS, cache_dir=folder)
    assert torch.equal(again.train.inputs, data.train.inputs)
    again.train.inputs[0] = 0  # writing to the map is allowed, and stays out of the file
    assert glyphs(num_clients=NUM_WRITERS, cache_dir=folder).train.inputs[0].any()


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/fedsim")
    monkeypatch.setenv("FEDSIM_CACHE", "/own")
    assert cache_root() == Path("/own")
    assert cache_root("/explicit") == Path("/explicit")


def _build(folder: Path) -> dict[str, int]:
    np.save(folder / "numbers.npy", np.arange(3))
    create_array(folder / "empty.npy", np.uint8, (0, 2))
    return {"answer": 42}


def test_packed_round_trip_leaves_nothing_behind(tmp_path: Path) -> None:
    arrays, meta = packed(tmp_path / "deep" / "cache", _build)
    assert arrays["numbers"].tolist() == [0, 1, 2]
    assert arrays["empty"].shape == (0, 2)
    assert meta == {"answer": 42}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cache"]


def test_a_failed_or_killed_build_is_not_believed(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> dict[str, int]:
        _build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "cache", interrupted)
    assert not list(tmp_path.iterdir())
    old, young = tmp_path / ".cache.1.tmp", tmp_path / ".cache.2.tmp"  # as kill -9 leaves them
    for path in (old, young):
        path.mkdir()
        _build(path)
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert packed(tmp_path / "cache", _build)[1] == {"answer": 42}
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "cache"]


def test_of_two_builders_the_first_wins(tmp_path: Path) -> None:
    def slow(folder: Path) -> dict[str, int]:
        packed(tmp_path / "cache", _build)  # another process comes in between
        return {"answer": 0}

    assert packed(tmp_path / "cache", slow)[1] == {"answer": 42}
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_damaged_cache_says_so(tmp_path: Path) -> None:
    packed(tmp_path / "cache", _build)
    np.save(tmp_path / "cache" / "numbers.npy", np.arange(4))
    with pytest.raises(ValueError, match=r"is damaged .* delete it"):
        packed(tmp_path / "cache", _build)
    (tmp_path / "cache" / cache_module._META).unlink()
    with pytest.raises(ValueError, match=r"is damaged .* delete it"):
        packed(tmp_path / "cache", _build)


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    def full(folder: Path) -> dict[str, int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    def missing(folder: Path) -> dict[str, int]:
        (tmp_path / "source.json").read_text()
        return {}

    with pytest.raises(ValueError, match=r"No space left on device; .* data\.cache_dir .* FEDSIM_CACHE"):
        packed(tmp_path / "cache", full)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"Not a directory; .* data\.cache_dir"):
        packed(tmp_path / "file" / "cache", _build)
    with pytest.raises(FileNotFoundError, match=r"source\.json"):  # not the cache's fault
        packed(tmp_path / "cache", missing)
