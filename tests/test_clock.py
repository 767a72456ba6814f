"""The clock of synchronous rounds, against schedules worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import fedsim
from fedsim.algorithms import fednova, mimelite
from fedsim.cli import conf_dir
from fedsim.clock import Clock, clients_asked
from fedsim.config import LocalConfig, ServerConfig
from fedsim.devices import Devices, drawn
from fedsim.models import logistic
from fedsim.sampling import Population, uniform
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.transforms import qsgd


def fixed(seconds: list[float], *, availability: float = 1.0, dropout: list[float] | float = 0.0) -> Devices:
    """Clients that take so many seconds for one sample, and for nothing else."""
    n = len(seconds)
    return Devices(
        samples_per_second=1 / np.array(seconds),
        download=np.full(n, np.inf),
        upload=np.full(n, np.inf),
        latency=np.zeros(n),
        availability=np.full(n, availability),
        dropout=np.broadcast_to(np.array(dropout, float), (n,)),
    )


def of(numbers: list[int]) -> Callable[[np.ndarray, int], np.ndarray]:
    """Clients -> their numbers, in any round."""
    return lambda clients, round: np.array(numbers)[clients]


def clock(seconds: list[float], *, work: list[int] | None = None, **settings) -> Clock:
    chances = {name: settings.pop(name) for name in ("availability", "dropout") if name in settings}
    samples = of([1] * len(seconds) if work is None else work)
    return Clock(devices=fixed(seconds, **chances), work=samples, download_bytes=100, upload_bytes=10, **settings)


EVERYBODY = np.arange(5)
# the five clients report after 4, 1, 3, 1 and 2 seconds
SECONDS = [4.0, 1.0, 3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "reported", "seconds"),
    [
        ({}, [0, 1, 2, 3, 4], 4.0),  # waits for the slowest
        ({"wanted": 3}, [1, 3, 4], 2.0),  # ends with the third report
        ({"wanted": 1}, [1], 1.0),  # 1 and 3 report at once: the lower number counts
        ({"deadline": 3.0}, [1, 2, 3, 4], 3.0),  # a report at the deadline counts
        ({"deadline": 2.5}, [1, 3, 4], 2.5),  # waits until the deadline for the others
        ({"deadline": 9.0}, [0, 1, 2, 3, 4], 4.0),
        ({"wanted": 3, "deadline": 1.5}, [1, 3], 1.5),
        ({"wanted": 3, "deadline": 2.0}, [1, 3, 4], 2.0),
    ],
)
def test_a_round_ends_when_it_should(settings, reported, seconds):
    outcome = clock(SECONDS, **settings).round(1, EVERYBODY)
    assert outcome.reported.tolist() == reported
    assert outcome.seconds == seconds
    assert (outcome.started, outcome.lost, outcome.stragglers) == (5, 0, 5 - len(reported))


@pytest.mark.parametrize(
    ("settings", "reported", "max_steps", "seconds"),
    [
        # of 8 steps, client 0 has taken 5 after 2.5 of its 4 seconds, and client 2 has taken 6.67 of 3 seconds' steps
        ({"deadline": 2.5}, [0, 1, 2, 3, 4], [5, 8, 6, 8, 8], 2.5),
        ({"deadline": 9.0}, [0, 1, 2, 3, 4], [8] * 5, 4.0),
        ({"deadline": 0.3}, [1, 3, 4], [2, 2, 1], 0.3),  # clients 0 and 2 have not even one of theirs
        ({"deadline": 2.5, "wanted": 3}, [1, 3, 4], [8, 8, 8], 2.0),  # ends before the deadline
        ({"deadline": 2.5, "wanted": 4}, [0, 1, 3, 4], [5, 8, 8, 8], 2.5),  # 0 and 2 report at once: the lower number
    ],
)
def test_who_would_be_late_sends_what_it_has(settings, reported, max_steps, seconds):
    outcome = clock(SECONDS, steps=of([8] * 5), **settings).round(1, EVERYBODY)
    assert outcome.reported.tolist() == reported
    assert outcome.max_steps.tolist() == max_steps
    assert outcome.seconds == seconds
    assert outcome.stragglers == 5 - len(reported)


def test_sending_takes_its_time_from_the_work_before_the_deadline():
    """A second for the model and half a second for the update: of 2.5 s there is 1 s to train, half of the steps."""
    devices = drawn(1, range(1), 0, samples_per_second=1.0, download=100.0, upload=20.0)
    c = Clock(devices=devices, work=of([2]), download_bytes=100, upload_bytes=10, deadline=2.5, steps=of([8]))
    outcome = c.round(1, np.arange(1))
    assert (outcome.max_steps.tolist(), outcome.seconds) == ([4], 2.5)


def test_a_straggler_takes_the_time_of_what_it_does(make_dataset):
    """Ten epochs of ten samples, a sample a second: who does e epochs reports after 10 e seconds, and after a deadline
    of 50 seconds only who does more is late."""
    settings = {
        "local": LocalConfig(num_epochs=10, straggler_share=0.7),
        "devices": partial(drawn, samples_per_second=1.0),
        "trainer": SerialTrainer,
        "device": "cpu",
    }
    dataset = make_dataset([10] * 8)
    server = ServerConfig(num_rounds=6, clients_per_round=8, evaluate_every=0)
    simulation = fedsim.Simulation(dataset, logistic, server=server, **settings)
    for metrics in simulation.rounds():
        plan = make_plan(dataset.train, np.arange(8), settings["local"], seed=0, round=metrics["round"])
        assert simulation.server.clock.round(metrics["round"], plan.clients[:1]).seconds == 10 * plan.steps[0]
    simulation = fedsim.Simulation(dataset, logistic, server=replace(server, deadline=50), **settings)
    for metrics in simulation.rounds():
        plan = make_plan(dataset.train, np.arange(8), settings["local"], seed=0, round=metrics["round"])
        assert metrics["clients"] == (plan.steps <= 5).sum()
    partial_work = replace(server, deadline=50, partial_work=True)
    for metrics in fedsim.Simulation(dataset, logistic, server=partial_work, **settings).rounds():
        plan = make_plan(dataset.train, np.arange(8), settings["local"], seed=0, round=metrics["round"])
        assert metrics["samples"] == 10 * plan.steps.clip(max=5).sum()


def test_the_pass_before_a_round_takes_its_time(make_dataset):
    """Mime's clients: 4 latencies of half a second, their 10 or 20 samples for the full gradient, and those again."""
    settings = {
        "algorithm": mimelite(),
        "devices": partial(drawn, samples_per_second=1.0, latency=0.5),
        "sampler": lambda population, count: lambda seed, round: np.array([round - 1]),
        "trainer": SerialTrainer,
        "device": "cpu",
    }
    for more, expected in (({}, [22.0, 42.0]), ({"deadline": 35.0, "partial_work": True}, [22.0, 35.0])):
        server = ServerConfig(num_rounds=2, clients_per_round=1, evaluate_every=0, **more)
        simulation = fedsim.Simulation(make_dataset([10, 20]), logistic, server=server, **settings)
        found = list(simulation.rounds())
        assert np.diff([0.0, *(m["virtual_seconds"] for m in found)]).tolist() == expected
    assert found[-1]["samples"] == 10, "after 22 s there are 13 s for two steps of 10 samples"


def test_without_devices_the_longest_work_counts_the_pass_before_it():
    """One step of 10 samples each, and before it a pass over all that a client has."""
    clock = Clock(
        devices=None,
        work=of([10, 10]),
        before=lambda clients: np.array([10, 1000])[clients],
        download_bytes=0,
        upload_bytes=0,
    )
    found = [clock.round(1, np.array(cohort)).seconds for cohort in ([0, 1], [1, 0], [1])]
    assert found[0] == found[1] == found[2]


def test_lost_clients_are_not_waited_for():
    """Clients 0 and 2 always give up, the slowest ones: the round ends with client 4, or later with their loss."""
    c = clock(SECONDS, dropout=[1, 0, 1, 0, 0])
    outcome = c.round(1, EVERYBODY)
    after = c.devices.gives_up(EVERYBODY, 1)
    assert outcome.reported.tolist() == [1, 3, 4]
    assert (outcome.started, outcome.lost, outcome.stragglers) == (5, 2, 0)
    assert outcome.seconds == max(2.0, 4 * after[0], 3 * after[2])
    c.seconds += outcome.seconds
    assert c.metrics(outcome) == {
        "virtual_seconds": outcome.seconds,
        "bytes_down": 500,
        "bytes_up": 30,
        "started": 5,
        "lost": 2,
        "stragglers": 0,
    }


def test_clients_without_samples_are_not_asked():
    outcome = clock(SECONDS, work=[0, 1, 0, 1, 0]).round(1, EVERYBODY)
    assert outcome.reported.tolist() == [1, 3]
    assert outcome.started == 2


def test_who_is_not_there_does_not_start():
    c = clock([1.0] * 2000, availability=0.25)
    outcome = c.round(3, np.arange(2000))
    assert np.array_equal(outcome.reported, np.flatnonzero(c.devices.available(np.arange(2000), 3)))
    assert abs(outcome.started - 500) < 100


def test_a_round_that_nobody_reports_in_is_tried_again_and_takes_its_time():
    """Two clients that are lost nine times in ten; each attempt takes as long as its last client holds on."""
    c = clock([1.0, 1.0], dropout=0.9)
    outcome = c.round(1, np.arange(2))
    expected = attempt = 0
    while not np.isinf(gives_up := c.devices.gives_up(np.arange(2), 1 + (attempt << 32))).any():
        expected, attempt = expected + gives_up.max(), attempt + 1
    assert attempt > 0, "take another seed: the first attempt shall fail"
    assert outcome.started == 2 * (attempt + 1)
    assert outcome.seconds == pytest.approx(expected + 1.0)


def test_a_round_that_cannot_succeed_says_so():
    with pytest.raises(ValueError, match=r"none of 5 clients reported within server\.deadline=0\.5 virtual seconds"):
        clock(SECONDS, deadline=0.5).round(1, EVERYBODY)


@pytest.mark.parametrize(("asked", "over", "result"), [(10, 1.0, 10), (0.1, 1.0, 0.1), (10, 1.25, 13), (0.1, 1.3, 13)])
def test_over_selection_asks_more_clients(asked, over, result):
    assert clients_asked(ServerConfig(clients_per_round=asked, over_selection=over), 100) == result
    assert clients_asked(ServerConfig(clients_per_round=90, over_selection=1.3), 100) == 100


def simulate(dataset, **settings):
    server = {"num_rounds": 4, "clients_per_round": 3, **settings.pop("server", {})}
    settings = {"server": fedsim.ServerConfig(**server), "trainer": SerialTrainer, "device": "cpu", **settings}
    return fedsim.simulate(dataset, logistic, **settings)


def slowest_of_each_round(num_rounds: int) -> list[int]:
    """Samples of the largest client of each cohort."""
    sizes = np.array([20, 5, 9, 30])
    sample = uniform(Population(sizes=sizes, losses=lambda clients: clients * 0.0), 3)
    return [int(sizes[sample(0, r)].max()) for r in range(1, num_rounds + 1)]


def test_devices_alone_change_times_and_nothing_else(make_dataset):
    def phones(num_clients, client_ids, seed):
        return drawn(num_clients, client_ids, seed, samples_per_second=10.0, download=1000.0, upload=500.0)

    plain, timed = simulate(make_dataset([20, 5, 9, 30])), simulate(make_dataset([20, 5, 9, 30]), devices=phones)
    same = ["train_loss", "update_norm", "clients", "samples"]
    assert plain[same].equals(timed[same])
    assert plain["test_loss"].iloc[-1] == timed["test_loss"].iloc[-1]
    nbytes = (12 * 4 + 4) * 4
    assert timed["bytes_down"].tolist() == [3 * nbytes] * 4
    assert timed["bytes_up"].tolist() == [3 * nbytes] * 4
    assert np.diff(timed["virtual_seconds"], prepend=0) == pytest.approx(
        [nbytes / 1000 + nbytes / 500 + slowest / 10 for slowest in slowest_of_each_round(4)]
    )


def test_only_clients_in_time_change_the_model(make_dataset):
    """With everybody asked and the fast half wanted, the run is that of a sampler that draws the fast half."""
    dataset = make_dataset([8] * 6)

    def halves(num_clients, client_ids, seed):
        return fixed([5.0, 1.0, 5.0, 1.0, 5.0, 1.0])

    def fast(population, clients_per_round):
        return lambda seed, round: np.array([1, 3, 5])

    timed = simulate(dataset, devices=halves, server={"over_selection": 2.0})
    chosen = simulate(dataset, sampler=fast)
    assert timed["update_norm"].tolist() == chosen["update_norm"].tolist()
    assert timed["virtual_seconds"].tolist() == [8.0, 16.0, 24.0, 32.0]
    assert timed["stragglers"].tolist() == [3] * 4


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=2)])
def test_partial_work_is_that_of_fewer_steps(make_dataset, trainer):
    """Eight samples of a second each in four steps, and five seconds: two steps, wherever a client's time goes."""

    def one_a_second(num_clients, client_ids, seed):
        return fixed([1.0] * num_clients)

    dataset, batches = make_dataset([8] * 4), {"batch_size": 2, "learning_rate": 0.1}
    settings = {"trainer": trainer, "algorithm": fednova()}
    server = {"deadline": 5.0, "partial_work": True}
    late = simulate(dataset, devices=one_a_second, server=server, local=LocalConfig(**batches), **settings)
    short = simulate(dataset, local=LocalConfig(num_steps=2, **batches), **settings)
    same = ["train_loss", "update_norm", "clients", "samples"]
    assert late[same].equals(short[same])
    assert late["virtual_seconds"].tolist() == [5.0, 10.0, 15.0, 20.0]
    assert late["stragglers"].tolist() == [0] * 4


def test_partial_work_needs_a_deadline():
    with pytest.raises(ValueError, match=r"partial_work has no effect without server\.deadline"):
        ServerConfig(partial_work=True)


def test_devices_time_no_groups(make_dataset):
    with pytest.raises(
        ValueError, match=r"a client of a group has several: set server\.group_rounds=1, or devices=none"
    ):
        simulate(make_dataset([4] * 4), devices=partial(drawn, upload=1.0), server={"group_rounds": 2})


def test_without_devices_time_is_that_of_equal_ones(make_dataset):
    equal = instantiate(OmegaConf.load(conf_dir() / "devices" / "equal.yaml"))
    plain = simulate(make_dataset([20, 5, 9, 30]))
    told = simulate(make_dataset([20, 5, 9, 30]), devices=equal)
    assert plain["virtual_seconds"].tolist() == told["virtual_seconds"].tolist()
    assert {"started", "lost", "stragglers"} == {*told} - {*plain}


def test_rounds_of_groups_take_their_time_one_after_the_other():
    """Client 1 trains 30 samples at 100 a second; 5 and 2 MB move in 2 and 3.2 s, and begin 0.05 s late."""
    sent = {"download_bytes": 5_000_000, "upload_bytes": 2_000_000}
    clock = Clock(devices=None, work=of([20, 30, 0]), group_rounds=3, **sent)
    outcome = clock.round(1, EVERYBODY[:3])
    assert outcome.seconds == pytest.approx(3 * (0.1 + 2 + 3.2 + 0.3))
    assert (outcome.started, outcome.lost, outcome.reported.tolist()) == (2, 0, [0, 1, 2])
    assert clock.round(2, EVERYBODY[2:3]).seconds == 0, "nobody is there"


def test_what_transforms_save_is_saved_on_the_clock(make_dataset):
    """52 parameters: 208 bytes down at 1000 a second; up, 8 bits each and a norm of 4 bytes at 7 a second."""
    frame = simulate(
        make_dataset([8] * 4), devices=partial(drawn, download=1000.0, upload=7.0), transforms=[qsgd(num_bits=8)]
    )
    assert np.diff(frame["virtual_seconds"], prepend=0) == pytest.approx([0.208 + 56 / 7] * 4)
    assert frame["bytes_up"].tolist() == [3 * 56] * 4


@pytest.mark.parametrize("settings", [{"over_selection": 1.5}, {"deadline": 3.0}])
def test_rounds_cannot_end_early_without_devices(make_dataset, settings):
    with pytest.raises(ValueError, match="need to know how fast clients are: set devices"):
        simulate(make_dataset([4] * 4), server=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"over_selection": 0.5}, "over_selection must be at least 1"), ({"deadline": 0}, "deadline must be positive")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerConfig(**settings)


def test_work_counts_epochs(make_dataset):
    def one_a_second(num_clients, client_ids, seed):
        return fixed([1.0] * num_clients)

    frame = simulate(make_dataset([4, 4, 4]), devices=one_a_second, local=LocalConfig(num_epochs=3))
    assert frame["virtual_seconds"].tolist() == [12.0, 24.0, 36.0, 48.0]
