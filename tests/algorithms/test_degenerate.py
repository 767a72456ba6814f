"""In its degenerate setting an algorithm is its parent."""

import dataclasses

import pytest
import torch

from fedsim import algorithms
from fedsim.algorithms import Algorithm
from fedsim.algorithms.base import equal_weights
from fedsim.config import LocalConfig, ScheduleConfig, ServerConfig
from fedsim.models import logistic
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer

SIZES = [12, 20, 8, 4, 16]
LOCAL = LocalConfig(batch_size=4, num_epochs=2, learning_rate=0.1, momentum=0.5)
PLAIN = LocalConfig(batch_size=4, num_epochs=2, learning_rate=0.1)
ONE = LocalConfig(batch_size=None, learning_rate=0.1)


def equal_fedavg():
    return Algorithm(name="equal_fedavg", weights=equal_weights)


CASES = {
    "fedprox without a proximal term": (lambda: algorithms.fedprox(0.0), algorithms.fedavg, 3, LOCAL),
    "fedavgm without momentum": (lambda: algorithms.fedavgm(0.0), algorithms.fedavg, 3, LOCAL),
    "the first round of scaffold": (algorithms.scaffold, equal_fedavg, 1, LOCAL),
    "the first round of weighted scaffold": (lambda: algorithms.scaffold(weighted=True), algorithms.fedavg, 1, LOCAL),
    "q-fedavg with q = 0": (lambda: algorithms.qfedavg(0.0), equal_fedavg, 3, LOCAL),
    "fedsam with radius 0": (lambda: algorithms.fedsam(0.0), algorithms.fedavg, 3, LOCAL),
    "mimelite without momentum": (lambda: algorithms.mimelite(0.0), algorithms.fedavg, 3, LOCAL),
    "ifca with one cluster": (lambda: algorithms.ifca(1), algorithms.fedavg, 3, LOCAL),
    "ditto's global model": (algorithms.ditto, algorithms.fedavg, 3, LOCAL),
    "apfl's global model": (algorithms.apfl, algorithms.fedavg, 3, LOCAL),
    "fedexp with a large epsilon": (lambda: algorithms.fedexp(1e6), algorithms.fedavg, 3, LOCAL),
    "agnostic with fixed domains": (
        lambda: algorithms.agnostic_fedavg(num_domains=1, domain_learning_rate=0.0),
        algorithms.fedavg,
        3,
        LOCAL,
    ),
    # equal numbers of steps: nothing to normalise
    "fednova with equal steps": (
        algorithms.fednova,
        algorithms.fedavg,
        3,
        dataclasses.replace(LOCAL, num_steps=7, weight_decay=0.01, nesterov=True),
    ),
    "per-fedavg with a whole minibatch": (
        lambda: algorithms.perfedavg(0.0),
        lambda: Algorithm(name="half", step=lambda c: c.descend(c.gradient(part=(1, 2)))),
        3,
        LOCAL,
    ),
    # v begins with tau^2 and stays there: eta / (2 tau) = 1
    "fedadagrad with a large tau": (lambda: algorithms.fedadagrad(2e6, 0.0, 1e6), algorithms.fedavg, 3, LOCAL),
    "fedadam with a large tau": (
        lambda: algorithms.fedadam(2e6, 0.0, 1 - 1e-13, 1e6),
        algorithms.fedavg,
        3,
        LOCAL,
    ),
    "fedyogi with a large tau": (lambda: algorithms.fedyogi(2e6, 0.0, 0.99, 1e6), algorithms.fedavg, 3, LOCAL),
    # one step of all samples: at the global model the correction is what it corrects
    "mime in one step without momentum": (lambda: algorithms.mime(0.0), algorithms.fedavg, 3, ONE),
    # theta = w - g / lambda, and w - eta lambda (w - theta) = w - eta g
    "pfedme in one step": (lambda: algorithms.pfedme(4.0, 0.25, 1), algorithms.fedavg, 3, ONE),
    # full batches, one step: both are a step along the gradient of all samples
    "fedsgd in minibatches": (
        algorithms.fedsgd,
        lambda: dataclasses.replace(algorithms.fedavg(), name="one full step"),
        3,
        PLAIN,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_degenerate_setting_is_the_parent(make_dataset, case):
    child, parent, rounds, local = CASES[case]
    dataset = make_dataset(SIZES)
    dataset = dataclasses.replace(
        dataset, train=dataclasses.replace(dataset.train, inputs=dataset.train.inputs.double()), test=None
    )
    vectors = []
    for algorithm in (child(), parent()):
        whole = algorithm.name == "one full step"
        simulation = Simulation(
            dataset,
            lambda s, c: logistic(s, c).double(),
            algorithm=algorithm,
            local=ONE if whole else local,
            server=ServerConfig(num_rounds=3, clients_per_round=4),
            trainer=SerialTrainer,
            device="cpu",
        )
        start = simulation.server.vector.clone()
        for _ in range(rounds):
            simulation.server.run_round()
        vectors.append(simulation.server.vector)
        assert (vectors[-1] - start).abs().max() > 1e-2
    torch.testing.assert_close(*vectors, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(
    "algorithm", [algorithms.scaffold, lambda: algorithms.scaffold(1), algorithms.fednova, algorithms.qfedavg]
)
def test_a_round_at_rate_zero_moves_nothing(make_dataset, algorithm):
    """The second and third round of a schedule that drops to 0."""
    simulation = Simulation(
        make_dataset(SIZES),
        logistic,
        algorithm=algorithm(),
        local=dataclasses.replace(LOCAL, schedule=ScheduleConfig(kind="step", factor=0.0, every=1)),
        server=ServerConfig(num_rounds=3, clients_per_round=4),
        trainer=SerialTrainer,
        device="cpu",
    )
    simulation.server.run_round()
    before = simulation.server.vector.clone()
    for _ in range(2):
        simulation.server.run_round()
    assert torch.equal(simulation.server.vector, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: algorithms.fedprox(-1.0), "proximal_weight must not be negative"),
        (lambda: algorithms.fedavgm(1.0), r"algorithm.momentum must be at least 0 and below 1, got 1.0"),
        (lambda: algorithms.scaffold(option=3), "algorithm.option must be 1 or 2"),
        (lambda: algorithms.feddyn(0.0), "regularisation must be positive"),
        (lambda: algorithms.fedadam(adaptivity=0.0), "adaptivity must be positive"),
        (lambda: algorithms.fedrep(head_share=1.0), "head_share must lie between 0 and 1"),
        (lambda: algorithms.ifca(0), "num_clusters must be at least 1"),
        (lambda: algorithms.fedper([]), "no layer is named"),
    ],
)
def test_a_mistake_names_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("algorithm", "local", "message"),
    [
        (
            lambda: algorithms.fedper(["head.wait"]),
            PLAIN,
            r"the layer 'head.wait' matches no parameter .*there is head.weight",
        ),
        (algorithms.fedbn, PLAIN, "has no normalisation layer with parameters to keep; use a model with one"),
        (algorithms.lg_fedavg, PLAIN, "all layers are averaged"),
        (lambda: algorithms.agnostic_fedavg([0, 1]), PLAIN, "2 entries for 5 clients"),
        (algorithms.scaffold, LocalConfig(optimizer="adam"), "use local=sgd"),
        (algorithms.fednova, LocalConfig(optimizer="adagrad"), "use local=sgd"),
    ],
)
def test_what_does_not_fit_is_refused(make_dataset, algorithm, local, message):
    def run():
        simulation = Simulation(
            make_dataset(SIZES),
            logistic,
            algorithm=algorithm(),
            local=local,
            server=ServerConfig(clients_per_round=2),
            trainer=SerialTrainer,
            device="cpu",
        )
        simulation.server.run_round()

    with pytest.raises(ValueError, match=message):
        run()
