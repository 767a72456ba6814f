"""Parts that do not fit each other: refused before the first round, or told once."""

import pytest
from torch import nn

from fedsim.algorithms import fedbn, fedper, ifca
from fedsim.config import LocalConfig, ScheduleConfig, ServerConfig
from fedsim.models import logistic
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
