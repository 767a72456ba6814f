"""Devices: drawn from what is stated, the same after a resume, and read from a trace without guessing."""

import numpy as np
import pytest

from fedsim.config import LocalConfig
from fedsim.data.federated import Split
from fedsim.devices import Choice, Devices, LogNormal, Uniform, drawn, samples_trained, steps_taken, trace
from fedsim.train.plan import make_plan

ALL = np.arange(20_000)
NAMES = range(20_000)


def devices(num_clients: int = 4, **changes) -> Devices:
    values = {"samples_per_second": 10.0, "download": 100.0, "upload": 50.0, "latency": 0.5, **changes}
    return drawn(num_clients, range(num_clients), 0, **values)


def test_seconds_add_up():
    """Two latencies of 0.5 s, 300 bytes at 100/s, 300 at 50/s and 40 samples at 10/s: 1 + 3 + 6 + 4 = 14 s."""
    seconds = devices().seconds(np.array([1, 2]), 1, np.array([40, 0]), download_bytes=300, upload_bytes=300)
    assert seconds.tolist() == [14.0, 10.0]


def test_infinite_speed_takes_no_time():
    fast = drawn(2, range(2), 0)
    assert fast.seconds(np.arange(2), 1, np.array([5, 9]), download_bytes=9, upload_bytes=9).tolist() == [0.0, 0.0]


def test_draws_follow_the_distribution():
    """Standard errors at 20,000 draws: mean 0.004 (of U(1, 3)), median 0.9% and log-deviation 0.0025, shares 0.0035."""
    d = drawn(
        len(ALL),
        NAMES,
        1,
        latency=Uniform(low=1.0, high=3.0),
        download=LogNormal(median=5.0, sigma=0.5),
        samples_per_second=Choice(values=[1.0, 2.0, 4.0], weights=[1.0, 1.0, 2.0]),
    )
    assert abs(d.latency.mean() - 2.0) < 0.02
    assert 1 <= d.latency.min() < 1.01
    assert 2.99 < d.latency.max() <= 3
    assert abs(np.median(d.download) / 5 - 1) < 0.03
    assert abs(np.log(d.download).std() - 0.5) < 0.0125
    assert np.allclose([np.mean(d.samples_per_second == v) for v in (1, 2, 4)], [0.25, 0.25, 0.5], atol=0.015)
    assert np.abs(np.corrcoef([d.latency, np.log(d.download), d.samples_per_second]) - np.eye(3)).max() < 0.03


def test_chances_are_those_that_were_asked_for():
    d = drawn(len(ALL), NAMES, 1, availability=0.3, dropout=0.2, jitter=0.5, samples_per_second=1.0)
    assert abs(d.available(ALL, 1).mean() - 0.3) < 0.015
    after = d.gives_up(ALL, 1)
    assert abs(np.isfinite(after).mean() - 0.2) < 0.015
    assert abs(after[np.isfinite(after)].mean() - 0.5) < 0.02
    factor = np.log(d.seconds(ALL, 1, np.ones(len(ALL)), download_bytes=0, upload_bytes=0))
    assert abs(factor.mean()) < 0.02
    assert abs(factor.std() - 0.5) < 0.0125


def test_every_draw_is_a_function_of_seed_client_and_round():
    d = drawn(len(ALL), NAMES, 1, availability=0.5, latency=Uniform(low=0.0, high=1.0))
    again = drawn(len(ALL), NAMES, 1, availability=0.5, latency=Uniform(low=0.0, high=1.0))
    some = np.array([17, 3, 900])
    assert np.array_equal(d.latency, again.latency)
    assert np.array_equal(d.available(ALL, 7)[some], again.available(some, 7))
    assert not np.array_equal(d.available(ALL, 7), d.available(ALL, 8))
    assert not np.array_equal(d.latency, drawn(len(ALL), NAMES, 2, latency=Uniform(low=0.0, high=1.0)).latency)


@pytest.mark.parametrize(
    "local",
    [
        LocalConfig(num_epochs=3, batch_size=4),
        LocalConfig(num_steps=1, batch_size=4),
        LocalConfig(num_steps=7, batch_size=4),
        LocalConfig(num_steps=3, batch_size=None),
    ],
)
def test_samples_and_steps_are_those_of_the_plan(local):
    sizes = np.array([1, 3, 4, 5, 11, 24])
    split = Split(inputs=np.zeros(48), targets=np.zeros(48), offsets=np.append(0, np.cumsum(sizes)))
    for client, expected in enumerate(samples_trained(sizes, local)):
        plan = make_plan(split, np.array([client]), local, seed=0, round=1)
        assert plan.counts.sum() == expected
        assert plan.steps.tolist() == [steps_taken(sizes, local)[client]]


def test_a_trace_names_its_clients_in_any_order(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("client,samples_per_second,download,upload,dropout\n7,1,2,3,0.5\nann,4,5,6,0\n")
    d = trace(2, ["ann", "7"], 0, path=str(path))
    assert d.samples_per_second.tolist() == [4, 1]
    assert d.upload.tolist() == [6, 3]
    assert d.dropout.tolist() == [0, 0.5]
    assert d.availability.tolist() == [1, 1]
    assert d.latency.tolist() == [0, 0]


def test_a_trace_without_names_is_dealt_at_random(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("samples_per_second,download,upload\n1,10,100\n2,20,200\n")
    d = trace(1000, range(1000), 3, path=str(path))
    assert np.array_equal(d.download, 10 * d.samples_per_second)
    assert abs((d.samples_per_second == 1).mean() - 0.5) < 0.08
    assert np.array_equal(d.upload, trace(1000, range(1000), 3, path=str(path)).upload)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("download,upload\n1,2\n", "no column samples_per_second"),
        ("samples_per_second,download,upload\n", "has no row"),
        ("client,samples_per_second,download,upload\nann,1,1,1\n", "1 clients have no row, the first is 'bob'"),
        ("samples_per_second,download,upload\n1,1,1\n1,fast,1\n", "line 3 has no number in column download"),
        ("samples_per_second,download,upload\n1,0,1\n", r"devices\.download must be positive, got 0"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        trace(2, ["ann", "bob"], 0, path=str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": -1.0}, r"devices\.latency must not be negative"),
        ({"availability": 1.5}, r"devices\.availability is a chance, from 0 to 1, got 1\.5"),
        ({"dropout": Uniform(low=-1.0, high=0.0)}, r"devices\.dropout is a chance"),
        ({"jitter": -0.1}, r"devices\.jitter must not be negative"),
        ({"latency": Choice(values=[1.0], weights=[1.0, 2.0])}, "1 values need as many weights"),
    ],
)
def test_impossible_devices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        devices(**changes)
