"""Single clients at the workers of a star, for a server that takes updates as they arrive.

A worker that has nothing to do is sent one client, with the model of that moment, and its update is there when it is
done. A client whose worker is gone, or takes too long (as a share of a round does), is given to another worker with the
model that it was first sent: its update is the same, and only older when it comes. One at which two workers have failed
is trained here, where its error is seen.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.transport.answers import Unwanted, answer, traffic
from fedsim.transport.base import Job, MakeJob
from fedsim.transport.messages import share_message
from fedsim.transport.shares import Child, Share, hand
from fedsim.transport.star import Star
from fedsim.transport.wire import Message

log = logging.getLogger("fedsim")

_POLL = 0.25  # seconds between looks for clients that take too long
_HERE = "server"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """An update that has arrived.

    Attributes:
        client, version: whose, and of the model that it started from.
        partial: the average of this one client.
        worker: name of the node that trained it.
        seconds: from when that was sent the client until its update was here.
    """

    client: int
    version: int
    partial: PartialAverage
    worker: str
    seconds: float


class Dispatch:
    """Sends clients to free workers and gives back their updates in the order of their arrival.

    Models are not kept here: `make_job(clients, version)`, which callers bring along, knows the older versions.

    Args:
        star: whose children are workers, with a trainer of its own for times without any.
        close: ends the run's nodes.
    """

    def __init__(self, star: Star, close: Callable[[], None]) -> None:
        assert star.own is not None
        self.star, self.own, self.close = star, star.own, close
        self.run_round = star.run_round  # a replay trains in jobs, as rounds do
        self.waiting: list[Share] = []  # of one client each, as all here; without its model
        self.running: dict[int, Share] = {}
        self.done: deque[Trained | ValueError] = deque()
        self.snapshot: tuple[int, Tensor] | None = None  # version and a copy that stays while the server goes on
        self.alone = False  # the last client that was trained was trained here
        self.started = self.lost = 0  # clients sent, and lost with their worker, since `figures`
        self.before: dict[Child, tuple[int, int]] = {}

    def free(self, make_job: MakeJob) -> int:
        """How many clients may be sent: one to each worker without work, or one to this process where nobody works."""
        while not self.star.events.empty():
            self._listen(0)
        self._hand_out(make_job)
        return len(self._idle()) or int(not self.running and not self.waiting)

    def send(self, client: int, version: int, make_job: MakeJob) -> None:
        """Let somebody train this client from the model of a version, as soon as there is somebody."""
        job = make_job(np.array([client]), version)
        self.waiting.append(Share(job=replace(job, broadcast=job.broadcast[:0])))
        self._hand_out(make_job)

    def next(self, make_job: MakeJob) -> Trained | None:
        """Wait for an update; None if something else has happened first, which may have changed what is `free`.

        Raises:
            ValueError: a client's loss or update is not finite.
        """
        self._hand_out(make_job)
        if not self.done:
            hopeless = any(share.hopeless(self.star.children) for share in self.waiting)
            nobody = (self.waiting or self.running) and all(self._late(share) for share in self.running.values())
            if hopeless or nobody:  # who could be hoped for
                self._train_here(make_job)
            else:
                self._listen(_POLL)
        found = self.done.popleft() if self.done else None
        if isinstance(found, ValueError):
            raise found
        return found

    def figures(self) -> dict[str, int]:
        """Since the last call: clients `started` and `lost`, and bytes to and from each worker."""
        moved = {name: int(count) for name, count in traffic(self.before).items()}
        found = {"started": self.started, "lost": self.lost, **moved}
        self.started = self.lost = 0
        self.before = {child: child.link.traffic for child in self.star.children}
        return found

    def _listen(self, seconds: float) -> None:
        event = self.star.next_event(seconds)
        self.before |= {child: (0, 0) for child in self.star.children if child not in self.before}
        if event is not None:
            self._answer(*event)

    def _idle(self) -> list[Child]:
        return [child for child in self.star.children if child.share is None]

    def _late(self, share: Share) -> bool:
        speeds = [child.speed for child in self.star.children if child.speed is not None]
        return share.overdue(self.star, float(np.median(speeds)) if speeds else None)

    def _hand_out(self, make_job: MakeJob) -> None:
        """Whoever has nothing to do gets a client that waits, or one that takes somebody else too long."""
        for number, share in list(self.running.items()):
            share.holders = [h for h in share.holders if h in self.star.children and h.share is share]
            if not share.holders:
                self.waiting.insert(0, Share(job=self.running.pop(number).job, failures=share.failures))
                self.lost += 1
        for child in self._idle():
            late = [s for s in self.running.values() if len(s.holders) == 1 and self._late(s)]
            children = self.star.children
            share = next((s for s in self.waiting if s.suits(child) and not s.hopeless(children)), None)
            if share is not None:
                self._give(child, share, make_job)
                self.waiting.remove(share)
            elif late:
                log.info(f"{late[0].holders[0].name} is slow; {child.name} trains client {_task(late[0])[0]} as well")
                self._give(child, late[0], make_job)

    def _give(self, child: Child, share: Share, make_job: MakeJob) -> None:
        client, version = _task(share)
        job = make_job(np.array([client]), version)
        if self.snapshot is None or self.snapshot[0] != version:
            self.snapshot = version, job.broadcast.to("cpu", copy=True)
        hand(share, child, self.running, self.star)
        self.started += 1
        child.link.send(share_message(replace(job, broadcast=self.snapshot[1]), share.number))

    def _answer(self, child: Child, message: Message) -> None:
        share, child.share = child.share, None
        wanted = share is not None and self.running.get(share.number) is share
        try:
            partial = answer(child, message, share, None if self.snapshot is None else len(self.snapshot[1]))
            if partial.rows:
                raise Unwanted("it sent vectors of clients, and nobody asked for them")
        except Unwanted as error:
            self.star.drop(child, str(error))
            return
        except ValueError as error:
            if wanted:  # the client stays in `running`: whoever goes on meets the error again
                self.done.append(error)
            return
        assert share is not None
        seconds = time.monotonic() - child.begun
        child.pace.saw(share.work, seconds)
        self.alone = False
        if wanted:
            self._arrived(self.running.pop(share.number).job, partial, child.name, seconds)

    def _arrived(self, job: Job, partial: PartialAverage, worker: str, seconds: float) -> None:
        client, version = int(job.cohort[0]), job.round - 1
        self.done.append(Trained(client=client, version=version, partial=partial, worker=worker, seconds=seconds))

    def _train_here(self, make_job: MakeJob) -> None:
        number, children = None if self.waiting else min(self.running), self.star.children
        self.waiting.sort(key=lambda share: not share.hopeless(children))
        share = self.waiting[0] if number is None else self.running[number]
        client, version = _task(share)
        if not self.alone:  # once, and not for every client
            why = "none answers in time" if children else "no worker is left"
            why = f"{' and '.join(share.failures)} failed at client {client}" if share.hopeless(children) else why
            log.warning(f"{why}, the server trains clients itself")
        self.alone = True
        begin = time.monotonic()
        partial = self.own.run_round(make_job(np.array([client]), version))
        if number is None:
            self.started += 1
            del self.waiting[0]
        else:
            del self.running[number]
        partial = replace(partial, total=partial.total.cpu())
        self._arrived(share.job, partial, _HERE, time.monotonic() - begin)


def _task(share: Share) -> tuple[int, int]:
    """The client, and the version of the model that it starts from."""
    return int(share.job.cohort[0]), share.job.round - 1
