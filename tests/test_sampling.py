"""Cohorts: functions of (seed, round), drawn by the law that was asked for, of the size that was asked for."""

from functools import partial

import numpy as np
import pytest

import fedsim
from fedsim.config import ServerConfig
from fedsim.devices import drawn
from fedsim.models import logistic
from fedsim.sampling import (
    Population,
    available,
    cohort_size,
    fixed,
    poisson,
    power_of_choice,
    present,
    round_robin,
    uniform,
    weighted,
)
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer


def clients(num_clients, **options):
    return Population(sizes=np.ones(num_clients, np.int64), **options)


SAMPLERS = {
    "uniform": lambda p: uniform(p, 50),
    "poisson": lambda p: poisson(p, 0.05),
    "weighted": lambda p: weighted(p, 50),
    "available": lambda p: available(p, 50),
    "power_of_choice": lambda p: power_of_choice(p, 50, 120),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_cohort_is_a_function_of_seed_and_round(name):
    sample = SAMPLERS[name](clients(1000, losses=lambda drawn: -drawn.astype(float)))
    assert np.array_equal(sample(1, 2), sample(1, 2))
    assert not np.array_equal(sample(1, 2), sample(1, 3))
    assert not np.array_equal(sample(1, 2), sample(2, 2))
    assert np.array_equal(sample(1, 2), np.unique(sample(1, 2))), "sorted and distinct"


def test_a_cohort_has_distinct_clients_and_each_comes_equally_often():
    """4,000 draws of 5 of 20: each client 1,000 times; the standard deviation is 27, the bound 5 of them."""
    sample = uniform(clients(20), 5)
    draws = np.stack([sample(0, r) for r in range(4000)])
    assert all(len(set(d)) == 5 for d in draws)
    assert np.abs(np.bincount(draws.ravel(), minlength=20) - 1000).max() < 137
    assert (sample.scheme, sample.cohort_size) == ("without_replacement", 5)


@pytest.mark.parametrize("asked", [0.25, 5])
def test_under_poisson_each_client_comes_by_itself(asked):
    """q = 1/4 of 20. Each 1,000 times of 4,000 (deviation 27); sizes have the binomial's mean 5 and variance 3.75;
    two clients are together in 1/16 of the draws (deviation 15 of 250)."""
    sample = poisson(clients(20), asked)
    draws = [sample(0, r) for r in range(4000)]
    sizes = np.array([len(d) for d in draws])
    assert np.abs(np.bincount(np.concatenate(draws), minlength=20) - 1000).max() < 137
    assert sizes.mean() == pytest.approx(5, abs=0.16)
    assert sizes.var() == pytest.approx(3.75, rel=0.15)
    together = sum(3 in d and 11 in d for d in draws)
    assert abs(together - 250) < 77
    assert (sample.scheme, sample.cohort_size) == ("poisson", 5)


def test_weighted_draws_follow_the_samples():
    """One at a time of sizes 1, 2, 3, 4, 0: shares 0.1 ... 0.4 and never; deviation at most 31 of 4,000."""
    sample = weighted(Population(sizes=np.array([1, 2, 3, 4, 0])), 1)
    counts = np.bincount(np.concatenate([sample(0, r) for r in range(4000)]), minlength=5)
    assert np.abs(counts - [400, 800, 1200, 1600, 0]).max() < 155
    assert set(weighted(Population(sizes=np.array([1, 2, 3, 4, 0])), 4)(0, 1)) == {0, 1, 2, 3}


def test_power_of_choice_takes_the_candidates_with_the_highest_loss():
    asked = []

    def losses(drawn):
        asked.append(drawn)
        return (drawn * 7 % 20).astype(float)

    sample = power_of_choice(clients(20, losses=losses), 3, 8)
    found = sample(0, 1)
    assert len(asked[0]) == 8
    assert set(found) == set(sorted(asked[0], key=lambda c: -(c * 7 % 20))[:3])
    power_of_choice(clients(20, losses=losses), 3)(0, 1)
    assert len(asked[1]) == 6
    everybody = power_of_choice(clients(20, losses=losses), 3, 20)(0, 1)
    assert set(everybody) == {17, 14, 11}, "7 c mod 20 is 19, 18, 17 there"


def test_power_of_choice_in_a_run_sees_the_global_models_losses(make_dataset):
    """With all clients as candidates, the cohort is the two with the highest mean loss of the model as it is."""
    simulation = Simulation(
        make_dataset([5, 9, 7, 12, 6]),
        logistic,
        sampler=lambda population, count: power_of_choice(population, count, 5),
        server=ServerConfig(num_rounds=2, clients_per_round=2),
        device="cpu",
    )
    for _ in range(2):
        frame = simulation.clients()  # nobody owns test samples: the training samples
        expected = np.sort(np.argsort(-frame["loss"].to_numpy())[:2])
        assert np.array_equal(simulation.server.sampler(0, simulation.server.round + 1), expected)
        simulation.server.run_round()


def test_round_robin_visits_everybody_in_turn():
    sample = round_robin(clients(5), 2)
    assert [sample(0, r).tolist() for r in (1, 2, 3, 4)] == [[0, 1], [2, 3], [0, 4], [1, 2]]


def test_availability_swings_over_the_day_and_each_client_has_its_own():
    """Chance 0.5 + 0.4 sin: over a day everybody is there half of the rounds; a single client's share of its best
    quarter of a day is near 0.86 (the mean of 0.5 + 0.4 sin over it) and of its worst near 0.14."""
    num, period = 400, 8
    sample = available(clients(num), num, period=period)
    there = np.zeros((400, num), bool)
    for t in range(1, 401):
        there[t - 1, sample(0, t)] = True
    assert there.mean() == pytest.approx(0.5, abs=0.01)
    by_hour = there.reshape(-1, period, num).mean(0)
    assert by_hour.max(0).mean() == pytest.approx(0.9, abs=0.04)
    assert by_hour.min(0).mean() == pytest.approx(0.1, abs=0.04)
    assert np.bincount(by_hour.argmax(0), minlength=period).min() > 20, "phases are spread over the day"


def test_available_draws_among_those_that_are_there():
    everybody, few = available(clients(100), 100), available(clients(100), 10)
    assert set(few(0, 3)) <= set(everybody(0, 3))
    assert len(few(0, 3)) == 10
    nobody = available(clients(3), 2, mean=0.0, amplitude=0.0)
    with pytest.raises(ValueError, match=r"round 4: no client is available; raise sampler\.mean"):
        nobody(0, 4)


def test_present_asks_the_devices_so_that_all_who_are_asked_start(make_dataset):
    """Of 200 clients a fifth is there; client 7 has no sample. Over the rounds each of the others comes."""
    sizes = np.ones(200, np.int64)
    sizes[7] = 0
    devices = drawn(200, range(200), 3, availability=0.2)
    sample = present(Population(sizes=sizes, there=devices.there), 10)
    seen = [sample(0, r) for r in range(1, 400)]
    assert all(devices.available(cohort, r).all() for r, cohort in enumerate(seen, 1))
    assert set(np.concatenate(seen)) == set(range(200)) - {7}
    few = present(Population(sizes=sizes, there=devices.there), 200)(0, 5)
    assert few.tolist() == [c for c in devices.there(5) if c != 7]

    frame = fedsim.simulate(
        make_dataset([4] * 30),
        logistic,
        server=ServerConfig(num_rounds=6, clients_per_round=5, evaluate_every=0),
        devices=partial(drawn, availability=0.5),
        sampler=present,
        trainer=SerialTrainer,
        device="cpu",
        progress=False,
    )
    assert frame["started"].tolist() == frame["clients"].tolist() == [5] * 6


def test_a_fixed_list_is_gone_through_again_and_again():
    sample = fixed(clients(5), 2, cohorts=[[3, 1], [4]])
    assert [sample(0, r).tolist() for r in (1, 2, 3)] == [[1, 3], [4], [1, 3]]


@pytest.mark.parametrize(("asked", "size"), [(1, 1), (100, 100), (1.0, 100), (0.1, 10), (0.001, 1)])
def test_counts_and_fractions(asked, size):
    assert cohort_size(asked, 100) == size


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (101, "clients_per_round=101, but there are 100 clients: choose 1 to 100"),
        (0, "there are 100 clients"),
        (1.5, "a fraction must be in"),
        (-0.1, "a fraction must be in"),
    ],
)
def test_impossible_cohorts_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        cohort_size(asked, 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: poisson(clients(5), 1.5), r"a probability must be in \(0, 1\]"),
        (lambda: weighted(Population(sizes=np.array([3, 0, 0])), 2), "draw 2 clients, but only 1 have samples"),
        (lambda: power_of_choice(clients(5, losses=len), 3, 2), "num_candidates=2 must be at least the 3"),
        (lambda: power_of_choice(clients(5), 3), "needs a population that can tell"),
        (lambda: available(clients(5), 3, mean=0.2, amplitude=0.4), "they are probabilities"),
        (lambda: available(clients(5), 3, period=0), "period must be at least 1"),
        (lambda: available(clients(5, there=np.arange), 3), "would disagree on who is there; use sampler=present"),
        (lambda: present(clients(5), 3), "set devices, or use sampler=available"),
        (
            lambda: present(clients(5, there=lambda round: np.array([], int)), 3)(0, 2),
            r"round 2: no client is available; raise devices\.availability",
        ),
        (lambda: fixed(clients(5), 2), "needs sampler.cohorts"),
        (lambda: fixed(clients(5), 2, [[1, 5]]), "clients are 0 to 4"),
        (lambda: fixed(clients(5), 2, [[1, 1]]), "names a client twice"),
    ],
)
def test_samplers_refuse_what_they_cannot_draw(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_million_clients_are_drawn_from_at_once():
    assert len(uniform(clients(1_000_000), 10)(0, 1)) == 10
    assert len(poisson(clients(1_000_000), 10)(0, 1)) < 40
