"""Nodes that join again: what they say first, what they build anew, and what is left of an attempt given up.

And what a worker takes of memory.
"""

import json
import textwrap
import threading
import time
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch

from fedsim.models import mlp
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
    left: list[object] = []
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
            left.extend(star.children)
            scheduler.worker.link.abort()
        if round == 3:
            deadline = time.monotonic() + 120
            while star.children in ([], left):
                assert time.monotonic() < deadline, "it did not come back"
                star.next_event(0.05)

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


# A worker with clients of the same sizes: the peak that the planner predicts for it without a message, and its own.
WORKER = """
    import json, sys
    import numpy as np
    import torch
    from functools import partial
    from fedsim import FederatedDataset, LocalConfig, Split, __version__
    from fedsim.algorithms import fedavg
    from fedsim.initial_model import build_model
    from fedsim.memory import peak_memory_bytes
    from fedsim.models import mlp
    from fedsim.train.footprint import footprint
    from fedsim.train.serial import SerialTrainer
    from fedsim.transport.inprocess import InProcess
    from fedsim.transport.worker import Built, Worker

    torch.set_num_threads(1)
    address, secret = sys.argv[1], sys.argv[2].encode()
    ready, sizes = map(json.loads, sys.argv[3:])
    num_samples, local = sum(sizes), LocalConfig(learning_rate=0.1, batch_size=5)
    split = Split(inputs=torch.randn(num_samples, 12), targets=torch.arange(num_samples) % 4,
                  offsets=np.concatenate([[0], np.cumsum(sizes)]))
    dataset = FederatedDataset(name="x", train=split, client_ids=[str(i) for i in range(len(sizes))], num_classes=4)
    model = build_model(dataset, partial(mlp, hidden_sizes=(4000, 2500)), seed=0, device="cpu")
    trainer = SerialTrainer(dataset, model, fedavg(), local, seed=0)
    message = model.vector.clone()
    planned = footprint(trainer, split, np.flatnonzero(sizes), local, message, 256.0).peak - message.nbytes
    del message
    own = InProcess(trainer, split, local, seed=0)
    built = Built(transport=own, device=model.device, ready=lambda: ready)
    about = {"secret": secret, "name": "w", "version": __version__, "claims": None}
    Worker([address], build=lambda identity, upstream: built, **about).run()
    print(json.dumps([planned, peak_memory_bytes(model.device)]))
"""


def test_a_worker_takes_what_the_planner_says_and_one_message(net, tmp_path, start, finish):
    """The message is the broadcast: the sum that goes up is the trainer's own, and in the planner's figure."""
    net.model, net.expected = partial(mlp, hidden_sizes=(4000, 2500)), 1
    simulation = net.simulation(net.star, num_rounds=3)
    star, sizes = net.stars[0], simulation.dataset.train.sizes.tolist()
    ready = {name: getattr(star.identity, name) for name in ("config_hash", "dataset", "layout")}
    star.own.run_round = None  # the worker trains everything
    arguments = [star.address, star.door.secret.decode(), json.dumps(ready), json.dumps(sizes)]
    worker = start(tmp_path, *arguments, module=("-c", textwrap.dedent(WORKER)))
    net.run(simulation)
    planned, peak = json.loads(finish(worker).splitlines()[-1])
    message = simulation.server.vector.nbytes
    assert message > 32 << 20, "glibc keeps smaller blocks when they are freed"
    assert peak < planned + 1.25 * message
