"""The star: a parent (server or scheduler) and its children, each on a link of its own.

`Star` lets children in, checks that they run the same thing, and knows who is there; `fedsim.transport.shares` divides
a round among them. All that happens on the links arrives in one queue, which the round reads.
"""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedsim.aggregate import PartialAverage
from fedsim.transport.base import Job, Transport, train_group
from fedsim.transport.carry import Ledger, Relay
from fedsim.transport.identity import Identity
from fedsim.transport.join import Door
from fedsim.transport.link import Link, Lost
from fedsim.transport.shares import Child, Round
from fedsim.transport.wire import Message

log = logging.getLogger("fedsim")

_FAREWELL = 3.0  # seconds for children to hear that the run has ended


class Star:
    """Runs rounds on whichever children are there.

    Args:
        listener: a listening socket (`fedsim.transport.join.listen`), taken over.
        secret: shared by all nodes of the run.
        identity: what children must agree on.
        own: trains what no child can; None: such a round ends in `fedsim.transport.shares.NoWorkers`.
        ledger: of a server: what clients keep and what happens to updates. None: there is nothing of the kind, or this
            node hands it on.
        upstream: addresses to which children may turn when this node is gone, the nearest first.
        timeout: seconds of silence after which a child counts as gone.
        join_seconds: how long the first round waits for `expected` workers.
        slow_factor: a share that takes so many times as long as expected is given to somebody else as well.
        share_seconds: the same while no speed is known.
        refuses_schedulers: why none may join; None: they may.
        expected: how many workers are still to be waited for, called again and again.
        on_workers: called with the number of workers whenever it has changed, by whoever reads the events.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        secret: bytes,
        identity: Identity,
        own: Transport | None,
        ledger: Ledger | None = None,
        upstream: tuple[str, ...] = (),
        timeout: float = 30.0,
        join_seconds: float = 300.0,
        slow_factor: float = 3.0,
        share_seconds: float = 3600.0,
        refuses_schedulers: str | None = None,
        expected: Callable[[], int] = lambda: 1,
        on_workers: Callable[[int], None] = lambda num_workers: None,
    ) -> None:
        self.identity, self.own, self.ledger, self.upstream = identity, own, ledger, list(upstream)
        self.join_seconds, self.slow_factor, self.share_seconds = join_seconds, slow_factor, share_seconds
        self.expected, self.on_workers, self.refuses_schedulers = expected, on_workers, refuses_schedulers
        self.children: list[Child] = []
        self.links: list[Link] = []  # to the children, and to nodes that are being checked
        self.lock = threading.Lock()  # of `links`: each node is let in by a thread of its own
        self.events: queue.Queue[tuple[Child, Message | Lost | None]] = queue.Queue()
        self.num_shares, self.abandoned = 0, False
        self.door = Door(listener, secret=secret, timeout=timeout, welcome=self._admit)

    @property
    def address(self) -> str:
        """HOST:PORT where children join."""
        return self.door.address

    @property
    def num_workers(self) -> int:
        return sum(child.workers for child in self.children)

    def run_round(self, job: Job) -> PartialAverage:
        """Train every client of the job, whoever dies meanwhile.

        Raises:
            ValueError: a client's loss or update is not finite.
            NoWorkers: there is no child, and this node does not train.
        """
        if job.group_rounds > 1 and job.num_groups == 1:
            return train_group(self.run_round, job)
        if self.ledger is None:
            return Round(self, job, Relay(job)).run()
        with self.ledger.open(job) as books:
            return Round(self, replace(job, uplink=books.uplink), books).run()

    def gather(self) -> None:
        """Wait for the workers that are expected, at most `join_seconds`."""
        log.info(f"waiting for {self.expected()} workers at {self.address}")
        deadline = time.monotonic() + self.join_seconds
        while self.num_workers < self.expected() and time.monotonic() < deadline:
            self.next_event(0.1)
        missing = self.expected() - self.num_workers
        if missing > 0:
            log.warning(
                f"{missing} of {self.expected()} workers did not join within {self.join_seconds:g} s; going on without"
            )

    def next_event(self, seconds: float) -> tuple[Child, Message] | None:
        """Wait for the next answer of a child; who joins, leaves or dies meanwhile is noted."""
        try:
            child, item = self.events.get(timeout=seconds)
        except queue.Empty:
            return None
        if item is None:
            self.children.append(child)
            log.info(
                f"{child.name} joined with {child.workers} workers" if child.is_scheduler else f"{child.name} joined"
            )
            self.on_workers(self.num_workers)
        elif isinstance(item, Lost):
            self.drop(child, item.reason)
        elif item.kind == "workers":
            try:
                child.workers = int(item.fields["workers"])
            except (KeyError, TypeError, ValueError):
                self.drop(child, "it does not say how many workers it has")
            self.on_workers(self.num_workers)
        elif child in self.children:
            return child, item
        return None

    def drop(self, child: Child, reason: str) -> None:
        """A child is gone, or is no longer wanted."""
        if child in self.children:
            self.children.remove(child)
            child.link.abort()
            log.warning(f"lost {child.name}: {reason}")
            self.on_workers(self.num_workers)

    def close(self) -> None:
        """Tell the children that the run has ended, and give the port back."""
        self.door.close()
        with self.lock:
            links, self.links = self.links, []
        for link in links:
            link.close(Message(kind="end"))
        deadline = time.monotonic() + _FAREWELL
        for link in links:
            link.join(max(0.0, deadline - time.monotonic()))
        for link in links:
            link.abort()
            link.join()
        self.children.clear()

    def abandon(self) -> None:
        """End without a word: the run goes on, and the children turn to the other addresses that they know."""
        self.abandoned = True
        self.door.close()
        with self.lock:
            links, self.links = self.links, []
        for link in links:
            link.abort()
            link.join()
        self.children.clear()

    def _admit(self, link: Link, about: dict[str, Any]) -> None:
        """The connection check: nothing is trained before both sides agree on what."""
        with self.lock:
            if not self.door.open:  # the run, or this node's part in it, has ended meanwhile
                if self.abandoned:
                    link.abort()
                else:
                    link.close(Message(kind="end"))
                return
            self.links = [known for known in self.links if not known.lost] + [link]
        refusal = self.identity.objection(about.get("claims"), str(about.get("version")))
        ready: Message | Lost | None = None
        if refusal is None:
            link.wire.limit = self.identity.limit
            link.send(Message(kind="welcome", fields={"identity": self.identity.fields(), "upstream": self.upstream}))
            ready = link.receive()  # after the child has built its data, which may take minutes
            if not isinstance(ready, Message):
                log.warning(f"{link.name} left before it was ready")
                return
            if ready.kind == "failed":
                log.warning(f"{link.name} cannot work: {ready.fields.get('reason')}")
                link.close()
                return
            is_scheduler = ready.fields.get("role") == "scheduler"
            refusal = self.refuses_schedulers if is_scheduler else self.identity.mismatch(ready.fields)
        if refusal is not None:
            log.warning(f"refused {link.name}: {refusal}")
            link.close(Message(kind="refused", fields={"reason": refusal}))
            return
        assert isinstance(ready, Message)
        is_scheduler, workers = ready.fields.get("role") == "scheduler", ready.fields.get("workers")
        if not is_scheduler:
            workers = 1
        elif type(workers) is not int:
            workers = 0
        holds = ready.fields.get("holds")
        child = Child(link=link, name=self._unique(link.name), is_scheduler=is_scheduler, workers=workers, holds=holds)
        link.send(Message(kind="accepted"))
        self.events.put((child, None))
        link.route(lambda item: self.events.put((child, item)))

    def _unique(self, name: str) -> str:
        taken = {child.name for child in self.children}
        return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
