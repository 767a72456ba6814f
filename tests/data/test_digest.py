"""Digests of arrays and the fingerprint of a dataset: equal contents, equal digests; anything else, another one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import digest as digest_module
from fedsim.data.digest import array_digest
from fedsim.data.federated import FederatedDataset, Split


@pytest.mark.parametrize("shape", [(0,), (0, 3), (7,), (300, 40, 40)])
def test_layout_order_of_bytes_and_place_do_not_count(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    digest = array_digest(array)
    assert array_digest(array.astype(">f8")) == digest
    assert array_digest(np.asfortranarray(array)) == digest
    np.save(tmp_path / "array.npy", array)
    assert array_digest(np.load(tmp_path / "array.npy", mmap_mode="r" if array.size else None)) == digest
    assert array_digest(array.astype("f4")) != digest
    assert array_digest(array.reshape(1, *shape)) != digest


def test_the_digest_is_the_same_everywhere() -> None:
    # sha256(header, then sha256 of each mebibyte): computed here with hashlib alone, for one small piece.
    import hashlib

    array = np.arange(6, dtype="<i4").reshape(2, 3)
    expected = hashlib.sha256(b"(2, 3) <i4" + hashlib.sha256(bytes(array)).digest()).digest()
    assert array_digest(array) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 4 * 700 * 1000 - 1), st.integers(1, 255))
def test_any_changed_byte_changes_the_digest(place: int, change: int) -> None:
    array = np.zeros((4 * 700, 1000), dtype=np.uint8)  # three pieces
    before = array_digest(array)
    array.reshape(-1)[place] = change
    assert array_digest(array) != before


def test_of_a_very_large_array_only_some_pieces_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_module, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(digest_module, "_MAX_CHUNKS", 5)
    array = np.arange(170, dtype=np.uint8)
    before = array_digest(array)  # of 17 pieces the numbers 0, 4, 8, 12 and 16
    changes = []
    for place in range(0, 170, 10):
        array[place] += 1
        changes.append(array_digest(array) != before)
        array[place] -= 1
    assert np.flatnonzero(changes).tolist() == [0, 4, 8, 12, 16]


def dataset(num_samples: int = 300) -> FederatedDataset:
    inputs = torch.arange(num_samples * 4, dtype=torch.float32).view(num_samples, 4)
    targets = torch.arange(num_samples) % 3
    offsets = np.array([0, 100, 250, num_samples])
    train = Split(inputs=inputs, targets=targets, offsets=offsets, order=np.arange(num_samples))
    test = Split(inputs=inputs[:90] + 1, targets=targets[:90].clone())
    return FederatedDataset(name="d", train=train, test=test, client_ids=["a", "b", "c"], num_classes=3)


def test_a_fingerprint_is_of_the_content() -> None:
    one, other = dataset(), dataset()
    assert one.fingerprint() == other.fingerprint() == one.fingerprint()
    assert len(one.fingerprint()) == 16


def test_any_changed_sample_label_or_owner_changes_the_fingerprint() -> None:
    before = dataset().fingerprint()
    found = {before}
    for part, count in (("train", 300), ("test", 90)):
        for row in range(0, count, 3):
            changed = dataset()
            split = getattr(changed, part)
            split.inputs[row, row % 4] += 1e-3
            found.add(changed.fingerprint())
            changed = dataset()
            getattr(changed, part).targets[row] += 1
            found.add(changed.fingerprint())
    assert len(found) == 1 + 2 * (100 + 30)
    moved = dataset()
    assert moved.train.offsets is not None
    moved.train.offsets[1] += 1
    swapped = dataset()
    assert swapped.train.order is not None
    swapped.train.order[[0, 299]] = swapped.train.order[[299, 0]]
    assert len({moved.fingerprint(), swapped.fingerprint(), before}) == 3
