"""A star with workers and schedulers on real links: the same bits as one process, whoever joins, dies or errs."""

import logging
import random
import socket
import threading
import time

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from fedsim.robust import mean
from fedsim.transport import join
from fedsim.transport.join import Refused


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_end_in_the_bits_of_one_process(net, is_open, num_workers):
    simulation = net.simulation(net.star)
    net.expected = num_workers
    address = simulation.transport.address
    for _ in range(num_workers):
        net.worker(address)
    seen = []
    own = simulation.transport.own
    own.run_round = None  # the server itself trains nothing
    vector = net.run(simulation, lambda round: seen.append(round))
    assert torch.equal(vector, net.reference())
    assert seen == [1, 2, 3, 4]
    net.close()
    assert net.errors == []
    assert not is_open(address)


def test_a_tree_of_three_levels_ends_in_the_same_bits_and_sends_one_vector_up(net):
    simulation = net.simulation(net.star)
    net.expected = 4
    top = simulation.transport
    _, west = net.scheduler(top.address)
    _, east = net.scheduler(top.address)
    _, far = net.scheduler(east)
    for address in (west, west, far, far):
        net.worker(address)
    top.own.run_round = None
    top.gather()
    rows = list(simulation.rounds())
    simulation.close()
    assert torch.equal(simulation.server.vector, net.reference())
    names = {name.removeprefix("bytes_up/") for name in rows[-1] if name.startswith("bytes_up/")}
    assert names == {worker.name for worker in net.workers}
    vector_bytes = 8 * len(simulation.server.vector)
    for row in rows[1:]:
        for child in ("s0", "s1"):
            assert vector_bytes <= row[f"bytes_up/{child}"] < vector_bytes + 2000  # headers, JSON, heartbeats


def test_workers_send_half_as_much_of_a_mean_in_float32(net):
    exact = net.reference()
    net.parts = lambda: {"aggregator": mean(dtype="float32")}
    simulation = net.simulation(net.star)
    net.expected = 2
    _, west = net.scheduler(simulation.transport.address)
    for _ in range(2):
        net.worker(west)
    simulation.transport.own.run_round = None
    simulation.transport.gather()
    rows = list(simulation.rounds())
    simulation.close()
    torch.testing.assert_close(simulation.server.vector, exact, rtol=1e-5, atol=1e-6)
    vector_bytes = 4 * len(simulation.server.vector)
    assert all(vector_bytes <= row["bytes_up/s0"] < vector_bytes + 2000 for row in rows[1:])


def test_groups_do_several_rounds_among_themselves_wherever_they_train(net):
    settings = {"num_groups": 3, "group_rounds": 2}
    simulation = net.simulation(net.star, **settings)
    star = net.stars[0]
    net.expected = 3
    _, west = net.scheduler(star.address)
    for address in (west, west, star.address):
        net.worker(address)
    star.own.run_round = None
    vector = net.run(simulation)
    assert torch.equal(vector, net.reference(**settings))
    assert not torch.equal(vector, net.reference())


def test_one_group_of_all_clients_is_as_many_plain_rounds(net):
    """With one group, R global rounds of k group rounds are R k rounds of FedAvg, if everybody takes part."""
    grouped = net.reference(num_rounds=2, clients_per_round=10, num_groups=1, group_rounds=3)
    plain = net.reference(num_rounds=6, clients_per_round=10)
    torch.testing.assert_close(grouped, plain, atol=1e-6, rtol=1e-6)


class Dying:
    """Trains until `fatal(job)`; then its link breaks in the middle of the round."""

    def __init__(self, own, fatal, fail):
        self.own, self.fatal, self.fail = own, fatal, fail

    def run_round(self, job):
        if self.fatal(job):
            self.fail()
        return self.own.run_round(job)

    def close(self):
        self.own.close()


def test_workers_that_lose_their_link_in_a_round_change_nothing_and_come_back(net, caplog):
    simulation = net.simulation(net.star, num_rounds=12)
    net.expected = 3
    address = simulation.transport.address
    nodes = []
    for i in range(3):
        rounds = [2, 4, 99] if i else [3, 99]  # at the first share from that round on
        nodes.append(
            net.worker(address, wrap=lambda own, i=i, rounds=rounds: Dying(
                own, lambda job: job.round >= rounds[0] and rounds.pop(0), lambda: nodes[i].link.abort()
            ))
        )  # fmt: skip
    vector = net.run(simulation, lambda round: net.await_children(3))
    assert torch.equal(vector, net.reference(num_rounds=12))
    assert sum("lost w" in record.message and "closed" in record.message for record in caplog.records) == 5


def test_twenty_rounds_of_chaos_change_nothing(net):
    """Four workers; in a seeded tenth of the shares the link breaks, in a tenth the work is slow; others join late."""
    net.settings = {"slow_factor": 2.0}
    simulation = net.simulation(net.star, num_rounds=20)
    net.expected = 4
    address = simulation.transport.address
    rng = random.Random(3)

    def start() -> None:
        nodes = []

        def disturb():
            if rng.random() < 0.5:
                nodes[0].link.abort()
            else:
                time.sleep(0.2)

        nodes.append(net.worker(address, wrap=lambda own: Dying(own, lambda job: rng.random() < 0.2, disturb)))

    for _ in range(4):
        start()

    def between(round):
        if round in (6, 13):
            start()
        if round == 9:
            net.workers[0].join_seconds = 0.1  # and one leaves for good
            net.workers[0].first = ["127.0.0.1:1"]
            net.workers[0].link.abort()

    begin = time.monotonic()
    assert torch.equal(net.run(simulation, between), net.reference(num_rounds=20))
    assert time.monotonic() - begin < 300


def test_without_workers_the_server_trains_and_late_ones_take_part(net, eventually, caplog):
    simulation = net.simulation(net.star, num_rounds=6)
    star = simulation.transport

    def between(round):
        if round == 2:
            net.worker(star.address)
            eventually(lambda: not star.events.empty())
        if round == 4:
            assert star.children[0].speed is not None
            star.own.run_round = None

    assert torch.equal(net.run(simulation, between), net.reference(num_rounds=6))
    told = [record.message for record in caplog.records if "itself" in record.message]
    assert told == [f"round {r}: no worker is left, the server trains clients itself" for r in (1, 2)]


def test_a_slow_worker_is_overtaken(net):
    net.settings = {"slow_factor": 50}  # one that stands still, and not one that waits for a processor
    simulation = net.simulation(net.star)
    net.expected = 2
    address = simulation.transport.address
    wake = threading.Event()

    def dawdle():
        assert wake.wait(600)

    net.worker(address, wrap=lambda own: Dying(own, lambda job: job.round == 2, dawdle))
    net.worker(address)
    begin = time.monotonic()
    simulation.transport.own.run_round = None
    try:
        vector = net.run(simulation)
    finally:
        wake.set()
    assert torch.equal(vector, net.reference())
    assert time.monotonic() - begin < 300


def test_a_first_share_that_never_comes_is_trained_by_the_server(net):
    """Nobody has shown how long one takes, and the worker's heart still beats."""
    net.settings = {"slow_factor": 1e6, "share_seconds": 1}
    simulation = net.simulation(net.star, num_rounds=2)
    net.expected = 1
    wake = threading.Event()
    net.worker(net.stars[0].address, wrap=lambda own: Dying(own, lambda job: True, lambda: wake.wait(600)))
    begin = time.monotonic()
    try:
        vector = net.run(simulation)
    finally:
        wake.set()
    assert torch.equal(vector, net.reference(num_rounds=2))
    assert 1 < time.monotonic() - begin < 300


def test_a_client_that_is_not_finite_ends_the_run_as_in_one_process(net):
    simulation = net.simulation(net.star)
    net.expected = 2
    for _ in range(2):
        net.worker(simulation.transport.address)
    simulation.server.vector.fill_(1e38)
    with pytest.raises(ValueError, match=r"round 1: the (loss|update) of client \d+ \(client_\d+\) is not finite"):
        net.run(simulation)


def test_a_worker_whose_device_fails_is_replaced(net, caplog):
    simulation = net.simulation(net.star)
    net.expected = 2
    address = simulation.transport.address

    def fail():
        raise RuntimeError("CUDA out of memory")

    net.worker(address, wrap=lambda own: Dying(own, lambda job: job.round == 2, fail), join_seconds=0.5)
    net.worker(address)
    assert torch.equal(net.run(simulation), net.reference())
    assert "lost w0: RuntimeError: CUDA out of memory" in caplog.text


@pytest.mark.parametrize("tree", [False, True])
def test_a_share_that_fails_everywhere_ends_the_run_with_its_error(net, failing, tree):
    simulation = net.simulation(net.star)
    net.expected = 2
    scheduler, address = net.scheduler(net.stars[0].address) if tree else (net, net.stars[0].address)
    fail = failing(lambda: scheduler.star if tree else net.stars[0])
    for _ in range(2):
        net.worker(address, wrap=lambda own: Dying(own, lambda job: True, lambda: fail(None)))

    def here(job):
        raise RuntimeError("it is broken here too")

    net.stars[0].own.run_round = here
    with pytest.raises(RuntimeError, match="it is broken here too"):
        net.run(simulation)


class Broken:
    """Fails at whatever it is given."""

    def __init__(self, own):
        self.close = own.close

    def run_round(self, job):
        raise RuntimeError("no memory left on this one")


def test_what_one_worker_fails_at_waits_for_another_one(net, eventually):
    """It joins again at once, alone without work while the other trains: its failures are still those of one."""
    simulation = net.simulation(net.star, num_rounds=3)
    star = net.stars[0]
    net.expected, failed = 2, threading.Event()
    net.worker(star.address, wrap=Broken)

    class Late:
        def __init__(self, own):
            self.own, self.close = own, own.close

        def run_round(self, job):
            failed.wait(10)
            eventually(lambda: len(star.children) == 2)  # the other one is there again
            time.sleep(0.3)
            return self.own.run_round(job)

    net.worker(star.address, wrap=Late)
    drop = star.drop

    def dropped(child, reason):
        drop(child, reason)
        failed.set()

    star.drop, star.own.run_round = dropped, None
    assert torch.equal(net.run(simulation), net.reference(num_rounds=3))


def dies(scheduler):
    """Without a word."""
    scheduler.worker.built = None
    scheduler.star.door.close()
    for link in [scheduler.worker.link, *scheduler.star.links]:
        link.abort()


def gives_up(scheduler):
    """For a reason of its own, in good order: the run has not ended."""
    scheduler.worker.link.abort()


@pytest.mark.parametrize("ends", [dies, gives_up])
def test_the_children_of_a_scheduler_that_ends_go_to_the_server(net, eventually, ends):
    simulation = net.simulation(net.star, num_rounds=5)
    star = simulation.transport
    net.expected = 2
    scheduler, address = net.scheduler(star.address)
    for _ in range(2):
        net.worker(address)

    def between(round):
        if round == 2:
            scheduler.worker.join_seconds, scheduler.worker.first = 0.1, ["127.0.0.1:1"]
            scheduler.worker.upstream = []
            ends(scheduler)
            star.own.run_round = None
            eventually(lambda: star.next_event(0) is None and {c.name for c in star.children} == {"w1", "w2"})

    assert torch.equal(net.run(simulation, between), net.reference(num_rounds=5))
    eventually(lambda: net.errors)
    assert "127.0.0.1:1 does not answer" in str(net.errors[0])


REFUSALS = {
    "another secret": ({"secret": b"another-secret-16"}, "its shared secret is another one"),
    "another version": ({"version": "0.0.1"}, "it runs fedsim 0.0.1, this run fedsim"),
    "another configuration": (
        {"claims": {"seed": 1, "local.batch_size": 5}}, "its configuration differs in seed (1 there, 0 here)",
    ),
    "other data": ({"sizes": [5] * 10}, "its data is not that of this run"),
}  # fmt: skip


def test_unfit_workers_are_refused_with_the_reason_and_the_run_goes_on(net, caplog, eventually):
    caplog.set_level(logging.WARNING)
    simulation = net.simulation(net.star)
    for changes, _ in REFUSALS.values():
        net.worker(simulation.transport.address, **changes)
    eventually(lambda: len(net.errors) == len(REFUSALS))
    for _, reason in REFUSALS.values():
        (error,) = [e for e in net.errors if reason in str(e)]
        assert isinstance(error, Refused)
        assert "\n" not in str(error)
        assert reason in caplog.text
    assert torch.equal(net.run(simulation), net.reference())
    assert not simulation.transport.children


def test_random_bytes_at_the_ports_change_nothing(net):
    simulation = net.simulation(net.star)
    net.expected = 1
    star = simulation.transport
    net.worker(star.address)
    host, _, port = star.address.rpartition(":")
    rng = random.Random(0)

    def throw(round: int) -> None:
        for size in (1, 9, 300, 5000):
            with socket.create_connection((host, int(port)), 5) as sock:
                sock.sendall(rng.randbytes(size))

    assert torch.equal(net.run(simulation, throw), net.reference())


def test_a_spoilt_list_of_nodes_that_wait_does_not_close_the_door(net, eventually, caplog):
    """Whoever reaches the port can write to the store, without the secret."""
    simulation = net.simulation(net.star)
    star = net.stars[0]
    host, _, port = star.address.rpartition(":")
    stranger = TCPStore(host, int(port), None, False, wait_for_workers=False)
    for i, spoilt in enumerate(["text", str(2**62), str(2**63 - 1), "-3"]):
        stranger.set("tickets", spoilt)
        eventually(lambda i=i: stranger.get("tickets") == str((i + 1 << 32) + i).encode())
        net.worker(star.address)
        net.await_children(i + 1)
    assert sum("has spoilt the list" in record.message for record in caplog.records) == 1
    simulation.close()


def test_a_door_without_file_descriptors_opens_again(net, caplog, monkeypatch):
    monkeypatch.setattr(join, "_AGAIN", 0.01)
    simulation = net.simulation(net.star)
    door, store, tries = net.stars[0].door, net.stars[0].door.store, []

    class Full:
        def clone(self):
            tries.append(1)
            if len(tries) <= 2 * join._AT_ONCE:
                raise RuntimeError("Too many open files")
            return store.clone()

    door.store = Full()
    net.worker(net.stars[0].address)
    net.await_children(1)
    assert [r.message for r in caplog.records if "cannot join" in r.message] == [
        "nodes cannot join now (Too many open files)"
    ]
    simulation.close()


def test_messages_that_nobody_asked_for_end_a_link_and_not_the_run(net, eventually, caplog):
    from fedsim.transport.wire import Message

    simulation = net.simulation(net.star)
    net.expected = 2
    address = simulation.transport.address

    class Liar(Dying):
        def run_round(self, job):
            partial = super().run_round(job)
            partial.total[0] = np.nan
            return partial

    net.worker(address, wrap=lambda own: Liar(own, lambda job: False, None), join_seconds=0.5)
    other = net.worker(address)

    def between(round):
        if round == 3:
            other.link.send(Message(kind="result", fields={"share": 10**6}))

    assert torch.equal(net.run(simulation, between), net.reference())
    assert "lost w0: it sent an average that is not finite" in caplog.text
    assert "lost w1: it answered 'result' to nothing that was asked" in caplog.text
