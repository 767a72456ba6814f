"""Nodes that join again: what they say first, what they build anew, and what is left of an attempt given up."""

import threading
import weakref
from dataclasses import replace

import pytest
import torch

from fedsim.transport import join
from fedsim.transport.identity import Identity
from fedsim.transport.join import Unreachable, knock
from fedsim.transport.wire import Wire
from fedsim.transport.worker import Built


def break_off(star) -> None:
    """The star's process dies without a word."""
    star.door.close()
    for link in star.links:
        link.abort()


def test_a_server_that_was_started_again_finds_its_nodes_as_they_were(net):
    """What a resumed run may change is no reason to build data and trainers again, or to give up a scheduler."""
    builds = []
    net.expected = 2
    net.config = {"checkpoint": {"resume": None}, "trainer": {"name": "serial"}}
    first = net.simulation(net.star)
    _, west = net.scheduler(first.transport.address)
    for address in (west, first.transport.address):
        net.worker(address, wrap=lambda own: builds.append(own) or own)
    first.transport.gather()
    next(first.rounds())
    break_off(first.transport)

    net.address, net.config = first.transport.address, {**net.config, "checkpoint": {"resume": "runs/1"}}
    net.stars.clear()
    second = net.simulation(net.star)
    second.own.run_round = None  # the server itself trains nothing
    assert torch.equal(net.run(second), net.reference())
    net.close()
    assert net.errors == []
    assert len(builds) == 2


def test_another_run_or_another_trainer_is_built_anew(net):
    simulation = net.simulation()
    here = net.identity(simulation.dataset, simulation.model, config={"trainer": {"a": 1}, "tracking": 1})
    assert replace(here, config={"trainer": {"a": 1}, "tracking": 2}).continues(here)
    assert not replace(here, config={"trainer": {"a": 2}, "tracking": 1}).continues(here)
    assert not replace(here, comparable={"seed": 1}).continues(here)
    assert not replace(here, size=here.size + 1).continues(here)


def test_a_scheduler_that_joins_again_says_first_that_it_is_ready(net, monkeypatch):
    """Its children come and go while the parent still looks at it: the parent hears of that later."""
    simulation = net.simulation(net.star)
    net.expected = 1
    star = net.stars[0]
    scheduler, west = net.scheduler(star.address)
    net.worker(west)
    waiting, asked = threading.Event(), Identity.objection

    def slow(identity, claims, version):
        waiting.wait(60)
        return asked(identity, claims, version)

    def between(round):
        if round == 2:
            monkeypatch.setattr(Identity, "objection", slow)
            identity, built = scheduler.worker.built

            def idle():
                scheduler._tell(1)
                waiting.set()

            scheduler.worker.built = (identity, replace(built, idle=idle))
            threading.Timer(1.0, waiting.set).start()
            scheduler.worker.link.abort()

    assert torch.equal(net.run(simulation, between), net.reference())
    net.close()
    assert net.errors == []


def test_a_node_that_cannot_build_says_so_and_ends(net, caplog, eventually):
    simulation = net.simulation(net.star)

    def build(identity, upstream) -> Built:
        raise ValueError("data.root is missing")

    net.worker(simulation.transport.address, build=build)
    eventually(lambda: "w0 cannot work: data.root is missing" in caplog.text)
    assert torch.equal(net.run(simulation), net.reference())
    net.close()
    assert [str(error) for error in net.errors] == ["data.root is missing"]


def test_nobody_keeps_a_message_that_has_done_its_work(net, monkeypatch, eventually):
    """A model in each of them: a node needs the memory of one."""
    passed = []
    send, receive = Wire.send, Wire.receive

    def sending(wire, message):
        if message is not None and message.tensors:
            passed.append(weakref.ref(message))
        send(wire, message)

    def receiving(wire):
        message = receive(wire)
        if message is not None and message.tensors:
            passed.append(weakref.ref(message))
        return message

    monkeypatch.setattr(Wire, "send", sending)
    monkeypatch.setattr(Wire, "receive", receiving)
    net.timeout = 2000.0  # no heartbeat takes their place
    simulation = net.simulation(net.star, num_rounds=2)
    net.expected = 2
    for _ in range(2):
        net.worker(simulation.transport.address)

    def between(round):
        assert len(passed) == 8 * round  # two jobs and two results, each sent and received
        eventually(lambda: all(message() is None for message in passed))

    net.run(simulation, between)


class Stub:
    """In the place of a link."""

    lost, name = False, "late"

    def __init__(self):
        self.closed = threading.Event()
        self.last = None

    def close(self, last=None):
        self.last = last
        self.closed.set()


def test_who_is_let_in_when_the_run_has_ended_is_told_so(net):
    simulation = net.simulation(net.star)
    simulation.close()
    link = Stub()
    net.stars[0]._admit(link, {})
    assert link.last.kind == "end"
    assert net.stars[0].links == []


def test_a_link_that_comes_too_late_is_closed(monkeypatch):
    link, go_on = Stub(), threading.Event()

    def handshake(*arguments):
        go_on.wait(60)
        return link

    monkeypatch.setattr(join, "_handshake", handshake)
    monkeypatch.setattr(join, "_STEPS", 0)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 does not answer"):
        knock("127.0.0.1:1", secret=b"0" * 16, timeout=1, name="w", about={})
    assert not link.closed.is_set()
    go_on.set()
    assert link.closed.wait(60)
