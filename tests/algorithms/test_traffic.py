"""Bytes of a round, counted by hand: a linear model of 12 inputs and 4 classes has 52 parameters of 4 bytes."""

from dataclasses import replace

import pytest
import torch

from fedsim import algorithms
from fedsim.algorithms import fedavg
from fedsim.algorithms.base import Kept
from fedsim.algorithms.traffic import traffic
from fedsim.config import LocalConfig
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


@pytest.mark.parametrize(("name", "down", "up"), [("fedavg", 52, 52), ("scaffold", 104, 104), ("local_only", 0, 0)])
def test_a_round_reports_what_its_clients_have_received_and_sent(make_problem, name, down, up):
    """In float64: 8 bytes an element, and four clients a round."""
    simulation, _ = make_problem(getattr(algorithms, name)(), LocalConfig())
    metrics = simulation.server.run_round()
    assert (metrics["bytes_down"], metrics["bytes_up"]) == (4 * 8 * down, 4 * 8 * up)
