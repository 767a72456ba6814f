"""Export as LEAF's JSON: plain json reads it, and fedsim reads the same dataset back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.leaf import read_leaf
from fedsim.data.leaf_write import Entry, write_leaf, write_split
from fedsim.data.partition import Iid
from fedsim.data.shakespeare import shakespeare
from fedsim.data.text import Tokens
from fedsim.data.words import reddit, sent140
from fedsim.objective import IGNORED


def load(folder: Path) -> dict[str, dict[str, Any]]:
    users = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        assert content["users"] == list(content["user_data"])
        assert content["num_samples"] == [len(d["y"]) for d in content["user_data"].values()]
        users |= content["user_data"]
    return users


def same(one: Split | None, other: Split | None) -> None:
    """The same samples, client by client, whatever the order of the rows."""
    assert (one is None) == (other is None)
    if one is None or other is None:
        return
    assert one.owned == other.owned
    assert one.inputs.dtype == other.inputs.dtype
    for client in range(one.num_clients) if one.owned else [None]:
        rows = [
            torch.arange(len(split.inputs)) if client is None else torch.from_numpy(split.rows(client))
            for split in (one, other)
        ]
        assert torch.equal(one.inputs[rows[0]], other.inputs[rows[1]])
        assert torch.equal(one.targets[rows[0]], other.targets[rows[1]])


def split_of(inputs: torch.Tensor, num_classes: int, sizes: list[int] | None, order: bool = False) -> Split:
    rng = np.random.default_rng(len(inputs))
    return Split(
        inputs=inputs,
        targets=torch.from_numpy(rng.integers(0, num_classes, len(inputs))),
        offsets=None if sizes is None else np.append(0, np.cumsum(sizes)),
        order=rng.permutation(len(inputs)) if order else None,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("central", [True, False])
@pytest.mark.parametrize("groups", [(), ("left", "right", "left")])
def test_numbers_come_back_to_the_bit(tmp_path, dtype, central, groups):
    def draw(count: int) -> torch.Tensor:
        if dtype == torch.uint8:
            return torch.randint(0, 256, (count, 1, 3, 2), dtype=dtype)
        return torch.randn(count, 1, 3, 2)

    torch.manual_seed(0)
    dataset = FederatedDataset(
        name="numbers",
        train=split_of(draw(9), 4, [4, 2, 3], order=True),
        test=split_of(draw(5), 4, None if central else [2, 0, 3], order=not central),
        validation=split_of(draw(4), 4, [1, 1, 2]),
        client_ids=["a b", 'quo"te', "ünï"],
        groups=groups,
        num_classes=4,
    )
    write_leaf(dataset, tmp_path / "out")
    back = read_leaf(tmp_path / "out", name="numbers", num_classes=4, input_shape=(1, 3, 2))
    assert list(back.client_ids) == list(dataset.client_ids)
    assert list(back.groups) == list(dataset.groups)
    for split in ("train", "test", "validation"):
        same(getattr(dataset, split), getattr(back, split))
    users = load(tmp_path / "out" / "train")
    own = torch.from_numpy(dataset.train.rows(1))
    expected = dataset.train.inputs[own].flatten(1).double()
    x = torch.tensor(users['quo"te']["x"], dtype=torch.float64)
    assert torch.equal(x, expected / 255 if dtype == torch.uint8 else expected)
    assert users['quo"te']["y"] == dataset.train.targets[own].tolist()


def test_characters_come_back_as_leafs_strings(tmp_path):
    dataset = shakespeare(num_clients=3, seed=4)
    write_leaf(dataset, tmp_path / "out")
    users = load(tmp_path / "out" / "test")
    assert list(users) == list(dataset.client_ids)
    first, *_, last = users[dataset.client_ids[0]]["x"]
    assert len(first) == len(last) == 80
    y = users[dataset.client_ids[0]]["y"]
    assert first[1:] + y[0] == users[dataset.client_ids[0]]["x"][1], "windows slide by one character"
    back = shakespeare(root=str(tmp_path / "out"))
    for split in ("train", "test"):
        same(getattr(dataset, split), getattr(back, split))
    assert list(back.groups) == list(dataset.groups) == ["stand_in"] * 3


def words(targets: torch.Tensor) -> FederatedDataset:
    """Tokens in which word i occurs 30 - i times, so that the vocabulary is built again in the same order."""
    vocabulary = ("<PAD>", "<UNK>", *(f"w{i:02d}" for i in range(18)))
    flat = [token for i in range(18) for token in [i + 2] * (30 - i)]
    tokens = torch.tensor(flat[: len(flat) // 5 * 5], dtype=torch.int32).view(-1, 5)
    tokens = torch.cat([tokens, torch.tensor([[0, 0, 1, 2, 1], [0, 0, 0, 0, 1]], dtype=torch.int32)])
    train = Split(inputs=tokens, targets=targets[: len(tokens)], offsets=np.array([0, 30, len(tokens)]))
    return FederatedDataset(
        name="words",
        train=train,
        test=dataclasses.replace(train, offsets=np.array([0, 1, 5])),
        client_ids=["ann", "bob"],
        num_classes=20,
        preprocess=Tokens(vocabulary=vocabulary),
    )


def test_words_come_back_as_leafs_tweets(tmp_path):
    dataset = words(torch.arange(200) % 2)
    write_leaf(dataset, tmp_path / "out")
    assert load(tmp_path / "out" / "train")["bob"]["x"][-2] == ["", "", "", "", "<UNK> w00 <UNK>"]
    back = sent140(root=str(tmp_path / "out"), vocabulary_size=20, length=5)
    assert back.preprocess == dataset.preprocess
    same(dataset.train, back.train)
    same(dataset.test, back.test)


def test_words_come_back_as_leafs_comments(tmp_path):
    targets = torch.randint(1, 20, (200, 5), generator=torch.Generator().manual_seed(0))
    targets[::3, 3:] = IGNORED
    dataset = words(targets)
    write_leaf(dataset, tmp_path / "out")
    record = load(tmp_path / "out" / "train")["ann"]
    assert record["x"][0] == [["w00"] * 5]
    assert record["y"][0]["count_tokens"] == [[1, 1, 1, 0, 0]]
    assert record["y"][0]["target_tokens"][0][3:] == ["<PAD>", "<PAD>"]
    back = reddit(root=str(tmp_path / "out"), vocabulary_size=20, length=5)
    assert back.preprocess == dataset.preprocess
    same(dataset.train, back.train)
    same(dataset.test, back.test)


def test_an_encoding_of_ones_own_is_taken(tmp_path, make_dataset):
    dataset = make_dataset([2, 1])
    write_leaf(dataset, tmp_path / "out", encode=lambda x, y: ([len(x)] * len(x), [-1] * len(y)))
    assert load(tmp_path / "out" / "train")["client_0"] == {"x": [2, 2], "y": [-1, -1]}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, make_dataset):
    dataset = make_dataset([2, 1])
    write_leaf(dataset, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out/test exists: delete it"):
        write_leaf(dataset, tmp_path / "out")
    central = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, offsets=None), client_ids=[])
    with pytest.raises(ValueError, match="data=clouds has no clients yet; apply a partition before"):
        write_leaf(central, tmp_path / "new")
    write_leaf(Iid(num_clients=2)(central, 0), tmp_path / "new")

    def broken(x: torch.Tensor, y: torch.Tensor) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_leaf(dataset, tmp_path / "stopped", encode=broken)
    assert not list((tmp_path / "stopped").iterdir())
    entry = Entry(name="ann", size=0, group=None, load=lambda: {"x": [], "y": []})
    with pytest.raises(ValueError, match="two users are called 'ann'"):
        write_split(tmp_path / "twice", [entry, entry])
