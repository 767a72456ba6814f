"""Parts that do not fit each other: refused before the first round, or told once."""

import re
from functools import partial

import pytest
from torch import nn

from fedsim.algorithms import ditto, fedbn, feddyn, fedper, ifca, scaffold
from fedsim.config import LocalConfig, ScheduleConfig, ServerConfig
from fedsim.models import logistic
from fedsim.robust import mean, median
from fedsim.sampling import power_of_choice, weighted
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer
from fedsim.transforms import clip, gaussian, local_gaussian, low_rank, qsgd, random_k, sign, top_k


@pytest.fixture
def start(make_dataset):
    def make(model=logistic, **settings):
        server = ServerConfig(num_rounds=2, clients_per_round=3, evaluate_every=0)
        return Simulation(
            make_dataset([7, 12, 10, 9]),
            model,
            **{"local": LocalConfig(batch_size=None), "server": server, **settings},
            trainer=SerialTrainer,
            device="cpu",
        )

    return make


def normed(shape, num_classes):
    return nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, num_classes))


@pytest.mark.parametrize(
    ("transforms", "name"),
    [
        ([clip(), gaussian()], "gaussian"),
        ([local_gaussian()], "local_gaussian"),
        ([random_k(0.1)], "random_k"),
        ([top_k(0.1), qsgd()], "top_k,qsgd"),
        ([sign()], "sign"),
    ],
)
def test_running_statistics_do_not_go_where_a_variance_may_become_negative(start, transforms, name):
    with pytest.raises(ValueError, match=rf"\[{name}\] may make a running variance negative, .* sends 1.running_mean"):
        start(normed, transforms=transforms)
    with pytest.raises(ValueError, match="use a model with GroupNorm, or algorithm=fedbn"):
        start(normed, transforms=transforms, algorithm=fedper())
    start(normed, transforms=transforms, algorithm=fedbn()).server.run_round()
    start(transforms=transforms)


@pytest.mark.parametrize("transform", [clip(), low_rank(1), top_k(0.1, error_feedback=False), random_k(1.0)])
def test_running_statistics_go_where_they_are_not_pushed_beyond_the_clients(start, transform):
    start(normed, transforms=[transform])


def test_the_servers_schedule_is_of_one_model(start):
    for schedule in (ScheduleConfig(kind="step"), ScheduleConfig(warmup_rounds=1)):
        server = ServerConfig(num_rounds=2, clients_per_round=3, schedule=schedule)
        with pytest.raises(ValueError, match=r"and algorithm=ifca has several: leave it out, or use local\.schedule"):
            start(algorithm=ifca(2), server=server)
        start(algorithm=ifca(1), server=server)
    start(algorithm=ifca(2))


@pytest.mark.parametrize(
    ("settings", "lossy"),
    [
        ({"transforms": [clip()]}, r"transforms\.clip,"),
        ({"transforms": [top_k(0.1), qsgd()]}, r"transforms\.qsgd,"),
        ({"transforms": [clip(), gaussian()]}, r"transforms\.clip, transforms\.gaussian,"),
        ({"aggregator": median()}, "aggregator=median,"),
        ({"transforms": [top_k(0.1)]}, None),
        ({"transforms": [low_rank(1)], "aggregator": mean(equal_weights=True)}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("algorithm", [scaffold, feddyn, ditto])
def test_state_on_both_sides_of_a_lossy_uplink_is_told_once(start, caplog, algorithm, settings, lossy):
    """Ditto's clients keep models of their own, which have no counterpart at the server."""
    for _ in start(algorithm=algorithm(), **settings).rounds():
        pass
    told = [text for text in caplog.messages if "its corrections stay biased" in text]
    assert len(told) == (lossy is not None and algorithm is not ditto)
    assert all(re.search(f"what came through {lossy} so that", text) for text in told)


@pytest.mark.parametrize("sampler", [weighted, partial(power_of_choice, num_candidates=4)])
def test_samples_that_count_twice_are_told(start, caplog, sampler):
    start(sampler=sampler)
    start(sampler=sampler, transforms=[clip()])
    assert sum("aggregator.equal_weights=true, or sampler=uniform" in text for text in caplog.messages) == 2
    caplog.clear()
    start(sampler=sampler, aggregator=mean(equal_weights=True))
    start(sampler=sampler, algorithm=scaffold())
    start(sampler=sampler, aggregator=median())
    start()
    assert not caplog.messages
