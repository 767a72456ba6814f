"""One round of a star: shares of the cohort, who trains them, and the partial averages that come back.

A share is lost when its node is gone; its clients are then divided again among the nodes that have nothing to do, or
trained here. A share that takes too long is given to another node as well, and the first answer counts. Neither shows
in the result: a client's update does not depend on who computes it, and the sum of updates not on their order. A share
in which a node has failed goes to another one. Where two nodes have, or all that there are, it would fail anywhere: it
is trained here, where its error is seen, or, on a scheduler, the failure goes up. What clients keep goes with their
share and comes back with its result (`fedsim.transport.carry`).
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.aggregate import PartialAverage
from fedsim.transport.base import Job, add_metrics
from fedsim.transport.carry import Books
from fedsim.transport.divide import Pace, divide
from fedsim.transport.link import Link
from fedsim.transport.messages import partial_of, share_message
from fedsim.transport.wire import Message

if TYPE_CHECKING:
    from fedsim.transport.star import Star

log = logging.getLogger("fedsim")

_POLL = 0.25  # seconds between looks for shares that take too long
_MIN_SLOW = 1.0  # seconds: below, nothing is called slow
_MOST_FAILURES = 2  # nodes that failed in a share, before it is the share that is blamed
_OWN_PIECES = 8  # what nobody else can train is trained here in pieces, so that whoever joins meanwhile gets some


class NoWorkers(RuntimeError):
    """There is no child to train the round, and this node does not train."""


@dataclass(eq=False, kw_only=True)
class Child:
    """A node that has joined.

    Attributes:
        link: to it.
        name: unique among the children.
        is_scheduler: it has children of its own.
        workers: how many train behind it; 1 for a worker.
        share: what it trains now, or still trains although it is not needed any more.
        begun: time when it was given that (monotonic seconds).
        pace: samples a second of one of its workers.
        holds: what it says of clients whose data only it has (`fedsim.transport.owners`); None: it has the run's data.
    """

    link: Link
    name: str
    is_scheduler: bool = False
    workers: int = 1
    share: "Share | None" = None
    begun: float = 0.0
    pace: Pace = field(default_factory=Pace)
    holds: dict[str, Any] | None = None

    @property
    def speed(self) -> float | None:
        """Samples a second that one of its workers has shown; None: unknown."""
        return self.pace.speed


@dataclass(eq=False, kw_only=True)
class Share:
    """Part of a round that one node trains.

    Attributes:
        job: what is trained.
        number: of this share in the run.
        holders: who trains it.
        failures: by name, what nodes that could not train its clients gave as the reason; who was lost gives none.
    """

    job: Job
    number: int = -1
    holders: list[Child] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def suits(self, child: Child) -> bool:
        """Whether this node may try it: it has not failed in it."""
        return child.name not in self.failures

    def hopeless(self, children: Sequence[Child]) -> bool:
        """Whether no other of these nodes should try it."""
        everybody = bool(self.failures and children) and not any(self.suits(child) for child in children)
        return everybody or len(self.failures) >= _MOST_FAILURES

    @property
    def work(self) -> float:
        return float(self.job.sizes.sum()) * self.job.group_rounds

    def overdue(self, star: "Star", usual: float | None) -> bool:
        """Whether all who train it take far longer than they should; `usual`: speed of others' workers."""
        now = time.monotonic()
        for holder in self.holders:
            pace = (holder.speed or usual or 0.0) * holder.workers
            limit = max(_MIN_SLOW, star.slow_factor * self.work / pace) if pace else star.share_seconds
            if now - holder.begun < limit:
                return False
        return True


def hand(share: Share, child: Child, running: dict[int, Share], star: "Star") -> None:
    """The child trains the share from now on; its first one gives it a number and a place in `running`."""
    if share.number < 0:
        star.num_shares += 1
        share.number = star.num_shares
        running[share.number] = share
    share.holders.append(child)
    child.share, child.begun = share, time.monotonic()


class Round:
    """Divides one job among the children of a star and adds up what they send back."""

    def __init__(self, star: "Star", job: Job, books: Books) -> None:
        self.star, self.vector, self.books = star, job.broadcast, books
        job = replace(job, broadcast=job.broadcast.cpu()).part(job.sizes > 0)
        # a group trains as one; other clients can be divided as one likes
        self.waiting = [Share(job=unit) for unit in (job.groups() if job.group_rounds > 1 else [job])]
        self.running: dict[int, Share] = {}
        self.metrics: list[dict[str, float]] = []
        self.alone = False  # this node has trained clients itself

    def run(self) -> PartialAverage:
        star = self.star
        before = {child: child.link.traffic for child in star.children}
        while self.waiting or self.running:
            while not star.events.empty():
                self._next(0)
            before |= {child: (0, 0) for child in star.children if child not in before}
            self._recall()
            self._hand_out()
            if any(share.hopeless(star.children) for share in self.waiting):
                self._train_here()
                continue
            if not (self.waiting or self.running):
                break
            if (self.running and not self._all_overdue()) or (star.own is None and star.num_workers):
                self._next(_POLL)
            else:
                self._train_here()
        traffic: dict[str, float] = {}
        for child, (sent, received) in before.items():
            now_sent, now_received = child.link.traffic
            for key, value in (("down", now_sent - sent), ("up", now_received - received)):
                name = f"bytes_{key}/{child.name}"  # twice, if it was lost and has come back
                traffic[name] = traffic.get(name, 0.0) + value
        done = self.books.result(add_metrics([*self.metrics, traffic]))
        return replace(done, total=done.total.to(self.vector.device))

    def _next(self, seconds: float) -> None:
        event = self.star.next_event(seconds)
        if event is not None:
            self._answer(*event)

    def _recall(self) -> None:
        """Shares that nobody trains any more wait again."""
        for number, share in list(self.running.items()):
            share.holders = [h for h in share.holders if h in self.star.children and h.share is share]
            if not share.holders:
                self.waiting.append(Share(job=self.running.pop(number).job, failures=share.failures))

    def _hand_out(self) -> None:
        idle = [c for c in self.star.children if c.share is None and c.workers > 0]
        for share in [s for s in self.waiting if s.failures and not s.hopeless(self.star.children)]:
            other = next((child for child in idle if share.suits(child)), None)
            if other is not None:
                idle.remove(other)
                self.waiting.remove(share)
                self._give(other, share)
        if not idle:
            return
        blamed, self.waiting = [s for s in self.waiting if s.failures], [s for s in self.waiting if not s.failures]
        if self.waiting:
            usual = self._usual_speed() or 1.0
            speeds = [(c.speed or usual) * c.workers for c in idle]
            if self.waiting[0].job.group_rounds > 1:
                parts = divide(np.array([s.work for s in self.waiting]), speeds)
                chosen = [(child, self.waiting[part[0]]) for child, part in zip(idle, parts, strict=True) if len(part)]
                self.waiting = [s for s in self.waiting if all(s is not taken for _, taken in chosen)]
            else:
                whole = _joined(s.job for s in self.waiting)
                parts = [self._fitting(part, whole.sizes) for part in divide(whole.sizes, speeds)]
                left = np.ones(len(whole.cohort), bool)
                left[np.concatenate(parts)] = False
                self.waiting = [Share(job=whole.part(left))] if left.any() else []
                chosen = [
                    (child, Share(job=whole.part(part))) for child, part in zip(idle, parts, strict=True) if len(part)
                ]
            for child, share in chosen:
                self._give(child, share)
            fastest = max(c.speed or usual for c in idle)
            for child in idle:
                if child.share is None:
                    child.pace.passed_over(fastest)
            self.waiting += blamed
            return
        self.waiting = blamed
        usual = self._usual_speed()
        late = [s for s in self.running.values() if len(s.holders) == 1 and s.overdue(self.star, usual)]
        if late:
            share, helper = late[0], max(idle, key=lambda c: (c.speed or 0.0) * c.workers)
            log.info(
                f"{share.holders[0].name} is slow; {helper.name} trains its {len(share.job.cohort)} clients as well"
            )
            self._give(helper, share)

    def _fitting(self, part: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Of the clients in `part`, the longest ones whose vectors fit into one message."""
        most = self.star.identity.clients_a_share
        return part if most is None else np.sort(part[np.argsort(-sizes[part], kind="stable")[:most]])

    def _give(self, child: Child, share: Share) -> None:
        hand(share, child, self.running, self.star)
        rows = self.books.down(share.job.cohort)
        child.link.send(share_message(replace(share.job, rows=rows), share.number))

    def _answer(self, child: Child, message: Message) -> None:
        share, child.share = child.share, None
        if share is None or message.fields.get("share") != share.number:
            self.star.drop(child, f"it answered {message.kind!r} to nothing that was asked")
            return
        wanted = self.running.get(share.number) is share
        if message.kind == "result":
            child.pace.saw(share.work / max(1, child.workers), time.monotonic() - child.begun)
            if wanted:
                try:
                    partial = partial_of(message, share.job)
                    self.books.check(partial, share.job)
                except ValueError as error:
                    self.star.drop(child, str(error))
                    return
                del self.running[share.number]
                self._merge(partial)
        elif message.kind == "failed" and message.fields.get("blame") == "run":
            if wanted:
                raise ValueError(str(message.fields.get("reason")))
        elif message.kind == "declined":
            child.workers = 0
        else:
            reason = str(message.fields.get("reason", f"it sent {message.kind!r}"))
            share.failures[child.name] = reason
            self.star.drop(child, reason)

    def _usual_speed(self) -> float | None:
        known = [c.speed for c in self.star.children if c.speed is not None]
        return median(known) if known else None

    def _all_overdue(self) -> bool:
        """Whether nothing can be hoped for: everything has been given out, and all of it is late."""
        usual = self._usual_speed()
        shares = self.running.values()
        return self.star.own is not None and all(s.overdue(self.star, usual) for s in shares)

    def _train_here(self) -> None:
        own, children = self.star.own, self.star.children
        self.waiting.sort(key=lambda share: share.hopeless(children))  # the last one is trained
        if own is None:
            if self.waiting and self.waiting[-1].hopeless(children):
                raise RuntimeError([*self.waiting[-1].failures.values()][-1])
            raise NoWorkers("no worker is left below this node")
        if self.waiting:
            share = self.waiting.pop()
            if share.job.group_rounds == 1 and len(share.job.cohort) > 1:
                pieces = divide(share.job.sizes, [1.0] * _OWN_PIECES)
                rest = np.setdiff1d(np.arange(len(share.job.cohort)), pieces[0])
                self.waiting.append(replace(share, job=share.job.part(rest)))
                share = replace(share, job=share.job.part(pieces[0]))
        else:
            share = self.running.pop(min(self.running))
        if not self.alone:  # once a round
            why = "none answers in time" if children else "no worker is left"
            why = f"{' and '.join(share.failures)} failed in the same share" if share.hopeless(children) else why
            log.warning(f"round {share.job.round}: {why}, the server trains clients itself")
        self.alone = True
        partial = own.run_round(replace(share.job, broadcast=self.vector))
        self._merge(replace(partial, total=partial.total.cpu()))

    def _merge(self, partial: PartialAverage) -> None:
        self.books.take(partial)
        self.metrics.append(partial.metrics)


def _joined(jobs: Iterable[Job]) -> Job:
    first, *rest = jobs
    if not rest:
        return first
    cohort, sizes = (np.concatenate([getattr(j, name) for j in (first, *rest)]) for name in ("cohort", "sizes"))
    stops = [j.max_steps for j in (first, *rest) if j.max_steps is not None]  # of all jobs of a round, or of none
    return replace(first, cohort=cohort, sizes=sizes, max_steps=np.concatenate(stops) if stops else None)
