"""The event queue, against a schedule worked out by hand."""

import numpy as np
import pytest

from fedsim.config import LocalConfig, ServerConfig
from fedsim.devices import drawn
from fedsim.events import Queue, make_queue
from fedsim.rng import stream


def queue(samples: list[int], *, concurrency: int, seed: int = 0, **devices) -> Queue:
    """Clients that compute one sample a second, and send and receive at once."""
    n = len(samples)
    return Queue(
        devices=drawn(n, range(n), seed, **{"samples_per_second": 1.0, **devices}),
        work=np.array(samples),
        download_bytes=100,
        upload_bytes=10,
        concurrency=concurrency,
        seed=seed,
    )


def at_work(q: Queue) -> list[tuple[int, int, float]]:
    """(client, version, end) of everybody at work."""
    return sorted((trip.client, trip.version, trip.end) for trip in q.trips)


def test_the_order_of_events_by_hand():
    """Everybody is at work: clients 0, 1, 2 take 2, 3 and 7 seconds; the server steps with every two updates.

    time 0: all start from version 0; 0 arrives at 2 and waits, for it has trained from this version; 1 arrives at 3.
    time 3: step, version 1; 0 and 1 start, to arrive at 5 and 6.
    time 6: step, version 2; 0 and 1 start, to arrive at 8 and 9. 2 arrives at 7, from version 0, and starts again from
            version 2; 0 arrives at 8.
    time 8: step, version 3.
    """
    q = queue([2, 3, 7], concurrency=3)
    sent = q.run(2, version=0)
    assert (q.seconds, q.arrived) == (3.0, [(0, 0), (1, 0)])
    assert at_work(q) == [(2, 0, 7.0)]
    assert sent == {"started": 3, "lost": 0, "bytes_down": 300, "bytes_up": 20}
    q.arrived.clear()
    sent = q.run(2, version=1)
    assert (q.seconds, q.arrived) == (6.0, [(0, 1), (1, 1)])
    assert sent == {"started": 2, "lost": 0, "bytes_down": 200, "bytes_up": 20}
    q.arrived.clear()
    sent = q.run(2, version=2)
    assert (q.seconds, q.arrived) == (8.0, [(2, 0), (0, 2)])
    assert at_work(q) == [(1, 2, 9.0), (2, 2, 14.0)]
    assert sent == {"started": 3, "lost": 0, "bytes_down": 300, "bytes_up": 20}
    assert q.versions() == {0, 2}


def test_what_arrives_at_one_instant_is_taken_before_others_start():
    q = queue([5] * 4, concurrency=4)
    q.run(4, version=0)
    assert (q.seconds, q.arrived) == (5.0, [(c, 0) for c in range(4)])
    assert q.draws == 1


def test_a_full_buffer_leaves_the_rest_of_the_instant_for_the_next_step():
    q = queue([5] * 4, concurrency=4)
    q.run(3, version=0)
    assert q.arrived == [(0, 0), (1, 0), (2, 0)]
    q.arrived.clear()
    q.run(2, version=1)
    assert q.seconds == 10.0
    assert q.arrived == [(3, 0), (0, 1)], "client 3 came at 5, the first of those that started at 5 at 10"


def test_clients_with_other_versions_work_on():
    """Only two places: the places of arrived clients are given to others, uniformly among those idle."""
    q = queue([1, 1, 1, 1, 1, 1], concurrency=2)
    q.run(6, version=0)
    assert sorted(q.arrived) == [(c, 0) for c in range(6)], "nobody trains twice from one version"
    assert q.seconds == 3.0


def test_a_whole_cohort_at_a_time_is_that_of_the_uniform_sampler():
    q = queue([4] * 50, concurrency=10, seed=3)
    for version in range(3):
        q.run(10, version)
        cohort = np.sort(stream(3, "cohort", version + 1).choice(50, 10, replace=False, shuffle=False))
        assert [client for client, _ in q.arrived] == cohort.tolist()
        q.arrived.clear()


def test_lost_clients_free_their_places_and_may_start_again():
    q = queue([1] * 400, concurrency=20, dropout=0.5)
    sent = q.run(300, version=0)
    assert sent["started"] == 300 + sent["lost"] + len(q.trips)
    assert abs(sent["lost"] / sent["started"] - 0.5) < 0.1
    assert len({client for client, _ in q.arrived}) == 300
    assert sent["bytes_down"] == 100 * sent["started"]
    assert sent["bytes_up"] == 3000


def test_a_population_that_is_hardly_there_is_waited_for():
    q = queue([1] * 3, concurrency=3, availability=0.05)
    q.run(3, version=0)
    assert sorted(q.arrived) == [(0, 0), (1, 0), (2, 0)]
    with pytest.raises(ValueError, match="nobody is at work, and none of 3 clients was there in 10000 draws"):
        queue([1] * 3, concurrency=1, availability=0.0).run(1, version=0)


def test_a_copy_that_runs_leaves_the_queue_alone():
    q = queue([2, 3, 7], concurrency=3)
    q.run(2, version=0)
    before = q.state_dict()
    q.copy().run(4, version=1)
    assert all(np.array_equal(before[name], q.state_dict()[name]) for name in before)


def test_a_queue_goes_on_from_its_state():
    settings = {"concurrency": 5, "dropout": 0.2, "availability": 0.7, "jitter": 0.3}
    samples = list(range(1, 31))
    one = queue(samples, **settings)
    one.run(7, version=0)
    one.arrived.clear()
    other = queue(samples, **settings)
    other.load_state_dict(one.state_dict())
    for version in range(1, 6):
        assert one.run(4, version) == other.run(4, version)
        assert (one.seconds, one.arrived, at_work(one)) == (other.seconds, other.arrived, at_work(other))
        one.arrived.clear()
        other.arrived.clear()


def test_settings_of_rounds_are_refused():
    sizes, nothing = np.array([1, 1]), {"download_bytes": 1, "upload_bytes": 1, "seed": 0}
    devices, both = drawn(2, range(2), 0), ServerConfig(clients_per_round=2)
    assert make_queue(devices, sizes, LocalConfig(num_epochs=2), both, **nothing).work.tolist() == [2, 2]
    with pytest.raises(ValueError, match="takes updates as they arrive: set devices"):
        make_queue(None, sizes, LocalConfig(), both, **nothing)
    with pytest.raises(ValueError, match="end rounds; an asynchronous algorithm has none"):
        make_queue(devices, sizes, LocalConfig(), ServerConfig(clients_per_round=2, deadline=1.0), **nothing)
