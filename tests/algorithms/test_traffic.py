"""Bytes of a round, counted by hand: a linear model of 12 inputs and 4 classes has 52 parameters of 4 bytes."""

from dataclasses import replace

import pytest
import torch

from fedsim.algorithms import fedavg
from fedsim.algorithms.base import Kept
from fedsim.algorithms.traffic import traffic
from fedsim.models import logistic
from fedsim.vector import FlatModel


def head(model: FlatModel) -> torch.Tensor:
    return torch.arange(52) >= 48


@pytest.mark.parametrize(
    ("changes", "down", "up"),
    [
        ({}, 52, 52),
        ({"broadcast": {"control": "parameters"}, "sums": {"control": "parameters", "loss": 1}}, 104, 105),
        ({"personal": head, "keeps": {"personal": Kept(size="personal", start="model")}}, 48, 48),
        ({"prelude": replace(fedavg(), sums={"gradient": "parameters"})}, 104, 52 + 104),
    ],
)
def test_traffic(changes, down, up):
    algorithm = replace(fedavg(), **changes)
    assert traffic(algorithm, FlatModel(logistic((12,), 4))) == (4 * down, 4 * up)
