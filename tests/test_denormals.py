"""Denormal numbers are flushed while a run computes, and nowhere else."""

import sys
import threading
from typing import ClassVar

import pytest
import torch
from torch import nn

from fedsim.config import LocalConfig, ServerConfig
from fedsim.denormals import flushed_denormals
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer


def flushes() -> bool:
    """Whether PyTorch and Python itself lose a denormal number, in this thread."""
    lost = {(torch.tensor([1e-39]) * 0.5).item() == 0.0, sys.float_info.min / 2 == 0.0}
    assert len(lost) == 1
    return lost.pop()


class Witness(nn.Module):
    """Writes down in which mode it is called and whether denormals are flushed then."""

    seen: ClassVar[list[tuple[bool, bool]]] = []

    def __init__(self, shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(shape[0], num_classes)

    def forward(self, x):
        self.seen.append((self.training, flushes()))
        return self.linear(x)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush")
def test_a_run_flushes_while_it_computes_and_leaves_the_process_as_it_was(make_dataset):
    Witness.seen.clear()
    simulation = Simulation(
        make_dataset([9, 9]),
        Witness,
        local=LocalConfig(learning_rate=0.1),
        server=ServerConfig(num_rounds=1, clients_per_round=2),
        trainer=SerialTrainer,
        device="cpu",
    )
    assert not flushes(), "a simulation that is only built changes nothing"
    Witness.seen.clear()
    for _ in simulation.rounds():
        assert not flushes()
    assert set(Witness.seen) == {(True, True), (False, True)}, "in training and in evaluation"


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush")
def test_the_setting_before_comes_back_after_an_error_and_other_threads_keep_theirs():
    elsewhere, step = [], threading.Barrier(2)

    def look():
        step.wait()
        elsewhere.append(flushes())
        step.wait()

    thread = threading.Thread(target=look)
    thread.start()

    @flushed_denormals()
    def fail():
        step.wait()
        step.wait()
        assert flushes()
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    thread.join()
    assert elsewhere == [False]
    assert not flushes()
    torch.set_flush_denormal(True)
    try:
        with flushed_denormals():
            pass
        assert flushes()
    finally:
        torch.set_flush_denormal(False)
