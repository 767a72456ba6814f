"""A user's own arrays, and held-out samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.data.arrays import from_arrays, from_clients
from fedsim.models import mlp


def test_three_lines_train_on_own_arrays() -> None:
    inputs, targets, writers = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3, np.arange(60) % 4
    dataset = fedsim.from_arrays(inputs, targets, writers)
    settings = {"server": fedsim.ServerConfig(num_rounds=2, clients_per_round=2), "progress": False}
    assert np.isfinite(fedsim.simulate(dataset, mlp, **settings)["train_loss"]).all()


@pytest.mark.parametrize("kind", ["numpy", "torch", "list"])
def test_every_client_owns_its_samples_in_their_order(kind: str) -> None:
    owners = np.array(["bob", "ann", "bob", "eve", "ann", "bob"])
    arrays: list[Any] = [np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 3])]
    if kind == "torch":
        arrays = [torch.from_numpy(array) for array in arrays]
    elif kind == "list":
        arrays = [array.tolist() for array in arrays]
    dataset = from_arrays(*arrays, owners.tolist(), test=([[9.0, 9.0], [8.0, 8.0]], [1, 2], ["eve", "ann"]))
    assert (list(dataset.client_ids), dataset.num_classes, dataset.input_shape) == (["ann", "bob", "eve"], 4, (2,))
    assert [dataset.train.rows(client).tolist() for client in range(3)] == [[1, 4], [0, 2, 5], [3]]
    assert dataset.test is not None
    assert [dataset.test.rows(client).tolist() for client in range(3)] == [[1], [], [0]]
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.targets.dtype == torch.int64


def test_sorted_owners_need_no_order_and_nothing_is_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.zeros((4, 2), dtype=np.uint8))
    inputs = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    dataset = from_arrays(inputs, [0, 1, 0, 1], [10, 10, 9, 9][::-1], test=(inputs, [1, 1, 0, 0]))
    assert dataset.train.order is None
    assert dataset.train.inputs.data_ptr() == inputs.ctypes.data
    assert list(dataset.client_ids) == ["9", "10"]  # by number, not by name
    assert dataset.test is not None
    assert not dataset.test.owned
    assert dataset.preprocess(torch.full((1, 2), 255, dtype=torch.uint8)).tolist() == [[1.0, 1.0]]
    assert not from_arrays(inputs, [0, 1, 0, 1]).train.owned


GOOD: dict[str, Any] = {"inputs": [[1.0, 2.0], [3.0, 4.0]], "targets": [0, 1], "clients": ["a", "b"]}


def pair(*targets: int, width: int = 2) -> tuple[np.ndarray, list[int]]:
    return np.arange(len(targets) * width, dtype=np.float32).reshape(len(targets), width) + targets[0], list(targets)


@pytest.mark.parametrize("named", [False, True])
def test_samples_that_lie_client_by_client_are_those_of_one_array(named: bool) -> None:
    samples, held = [pair(0, 1, 2), pair(1), pair(2, 0)], [pair(3), pair(1)]
    clients, tested = (
        ({"bob": samples[0], "ann": samples[1], "eve": samples[2]}, {"eve": held[0], "bob": held[1]})
        if named
        else (samples, held)
    )
    owners = ["bob"] * 3 + ["ann"] + ["eve"] * 2 if named else [0, 0, 0, 1, 2, 2]
    of_held = ["eve", "bob"] if named else [0, 1]
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
    test = (*(np.concatenate(arrays) for arrays in zip(*held, strict=True)), of_held)
    found = from_clients(clients, tested, name="own", num_classes=5)
    assert found.num_classes == 5
    assert (
        found.fingerprint() == from_arrays(inputs, targets, owners, test=test, name="own", num_classes=5).fingerprint()
    )


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([], r"^there are no {}clients: give \(inputs, targets\) of each"),
        ([np.zeros((2, 3))], r"^{}client 0 is a ndarray: give \(inputs, targets\) of each"),
        ({"ann": (np.zeros((0, 2)), [])}, r"^{}client ann's inputs have shape \(0, 2\)"),
        ([pair(0), pair(1, width=3)], r"^{}client 1 has samples and targets of \(3,\) float32, \(\) int64, the first"),
        ({1: pair(0), "1": pair(1)}, r"^two {}clients have the same name when it is written down: name them apart"),
        ({"bob": (np.full((1, 2), np.nan), [0])}, "^{}client bob's sample 0 holds a number that is not"),
    ],
)
def test_a_client_that_does_not_fit_is_named(clients: Any, message: str) -> None:
    for which, given_clients in (("", (clients,)), ("test ", ([pair(0), pair(1)], clients))):
        with pytest.raises(ValueError, match=message.format(which)) as caught:
            from_clients(*given_clients)
        assert "\n" not in str(caught.value)


def test_held_out_samples_come_from_one_place() -> None:
    with pytest.raises(ValueError, match=r"^held-out samples come from test or from test_clients: give one"):
        from_clients([pair(0)], [pair(0)], test=pair(1))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"inputs": [[1.0, 2.0], [3.0]]}, "^inputs have rows of unequal lengths: cut or pad them"),
    ({"inputs": [["a"], ["b"]]}, "^inputs are of type <U1: turn them into numbers"),
    ({"inputs": [1.0, 2.0]}, r"^inputs have shape \(2,\): give \(samples, \.\.\.\)"),
    ({"inputs": [[1.0, 2.0], [3.0, float("nan")]]}, "^sample 1 holds a number that is not a finite float32"),
    ({"inputs": [[1e300, 2.0], [3.0, 4.0]]}, "^sample 0 holds a number that is not a finite float32"),
    ({"targets": [0]}, "^2 inputs but 1 targets: give one target a sample"),
    ({"targets": [0.5, 1]}, "^targets are of type float64 and no whole numbers: number the classes from 0"),
    ({"targets": ["cat", "dog"]}, "^targets are of type <U3 and no whole numbers"),
    ({"targets": [-1, 1]}, "^a target is -1: number the classes from 0"),
    ({"num_classes": 1}, "^a target is 1, which is no class of 1: classes count from 0"),
    ({"clients": ["a"]}, r"^2 samples but clients of shape \(1,\): name one for each sample"),
    ({"clients": ["a", None]}, "^sample 1 has no client: name one for each sample"),
    ({"clients": [0.5, 1]}, "^clients are of type float64 and no whole numbers"),
    ({"test": ([[1.0, 2.0]], [0], ["c"])}, "^test samples belong to client c, who has no training samples"),
    ({"test": ([[1.0]], [0])}, r"^test samples are \(1,\) float32, training samples \(2,\) float32: make them alike"),
    ({"test": ([[1.0, np.inf]], [0])}, "^test sample 0 holds a number that is not"),
    ({"test": ([[1.0, 2.0]],)}, r"^test has 1 arrays: give \(inputs, targets\) or"),
    ({"clients": None, "test": ([[1.0, 2.0]], [0], ["a"])}, "^test samples have clients, training samples have not"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line_that_says_how_to_mend_them(change: dict[str, Any], message: str) -> None:
    from_arrays(**GOOD)
    with pytest.raises(ValueError, match=message) as caught:
        from_arrays(**{**GOOD, **change})
    assert "\n" not in str(caught.value)
