"""What clients keep, and updates that must be seen one by one, in other processes: the same run as in one process."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

from fedsim.algorithms import ditto, feddyn, fedadam, fedavg, ifca, mime, scaffold
from fedsim.attacks import backdoor, gaussian_attack, label_flip, little_is_enough, sign_flip
from fedsim.robust import geometric_median, krum, mean, median, trimmed_mean
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import adaptive_clip, clip, gaussian, local_gaussian, qsgd, random_k, sign, top_k

ALGORITHMS = {
    "fedavg": fedavg,
    "fedadam": fedadam,
    "mime": mime,  # a prelude
    "scaffold": scaffold,
    "feddyn": feddyn,
    "ditto": ditto,
    "ifca": partial(ifca, num_models=2),  # a prelude, and what clients keep
}
TWO = VectorizedTrainer, {"num_slots": 2}


def tree(net, shape, *trainers):
    """Adds workers "2", "4" or the tree "1-2-4" below the star; the workers take the trainers in turn."""
    top = net.stars[0].address
    places = [top] * int(shape) if shape != "1-2-4" else [net.scheduler(top)[1], net.scheduler(top)[1]] * 2
    net.expected = len(places)
    for i, place in enumerate(places):
        net.worker(place, trainer=trainers[i % len(trainers)])


@pytest.mark.parametrize("shape", ["2", "4", "1-2-4"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_end_in_the_bits_of_one_process(net, name, shape):
    net.algorithm = ALGORITHMS[name]
    simulation = net.simulation(net.star, num_rounds=5)
    tree(net, shape, SerialTrainer)
    simulation.own.run_round = None  # the server itself trains nothing
    assert torch.equal(net.run(simulation), net.reference(num_rounds=5))
