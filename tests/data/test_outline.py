"""The outline of a partition: its numbers, and that it stays small."""

import json

import numpy as np
import torch

from fedsim import FederatedDataset, Split
from fedsim.data.outline import outline


def dataset(sizes, targets, num_classes) -> FederatedDataset:
    split = Split(
        inputs=torch.zeros(len(targets), 1), targets=torch.as_tensor(targets), offsets=np.append(0, np.cumsum(sizes))
    )
    return FederatedDataset(
        name="mine", train=split, client_ids=[str(c) for c in range(len(sizes))], num_classes=num_classes
    )


def test_a_few_clients_stand_each_alone():
    found = outline(dataset([3, 0, 5], [0, 0, 2, 1, 1, 1, 1, 1], 3))
    assert (found["clients"], found["samples"], found["a_column"]) == (3, 8, 1)
    assert found["columns"] == [[2, 0, 1], [0, 5, 0]]  # the client without samples has no column
    assert found["held"] == [1, 1.5, 2]
    assert [found["sizes"][i] for i in (0, 25, 50)] == [0, 3, 5]


def test_many_clients_stand_in_groups_of_like_ones():
    # 20,000 clients with two samples of one class each, half of them of class 0
    targets = np.repeat(np.arange(20_000) % 2, 2)
    found = outline(dataset(np.full(20_000, 2), targets, 2))
    assert found["a_column"] == 200
    assert np.shape(found["columns"]) == (100, 2)
    assert {tuple(column) for column in found["columns"]} == {(1, 0), (0, 1)}
    assert abs(np.mean(found["columns"], axis=0)[0] - 0.5) < 0.05  # of a draw of half of them
    assert found["held"] == [1, 1, 1]
    assert len(json.dumps(found)) < 10_000


def test_without_classes_the_sizes_remain():
    split = Split(inputs=torch.zeros(6, 4), targets=torch.zeros(6, 4, dtype=torch.long), offsets=np.array([0, 2, 6]))
    text = FederatedDataset(name="text", train=split, client_ids=["a", "b"], num_classes=80)
    assert set(outline(text)) == {"clients", "samples", "sizes"}
    assert set(outline(dataset([1, 1], [0, 1], 300))) == {"clients", "samples", "sizes"}  # more than a picture shows
