"""Workers that hold data of their own, each of some clients: the server asks, and sees names, sizes, updates and sums.

A client can be trained only by the worker that holds it. One that is gone takes its clients along until it has joined
again, and rounds go on with the others. The server numbers the clients of all workers in the order of their names, and
tells each worker the numbers of its own, so that a client's minibatches are what they would be if all data were in one
place.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedsim.aggregate import OnlineAverage, PartialAverage, merged
from fedsim.objective import Objective
from fedsim.transport.answers import Unwanted, answer, traffic
from fedsim.transport.base import Job, add_metrics
from fedsim.transport.messages import share_message
from fedsim.transport.own_data import sums
from fedsim.transport.shares import Child, Share
from fedsim.transport.star import Star
from fedsim.transport.wire import Message

log = logging.getLogger("fedsim")

_POLL = 0.25  # seconds
_TRIES = 2  # in a round, for a worker that fails


class Owners:
    """The server's transport, and its way to metrics.

    Args:
        star: without a trainer of its own.
        objective: of the run.
        join_seconds: how long a round waits while nobody is there whom it could ask.
    """

    def __init__(self, star: Star, objective: Objective, *, join_seconds: float) -> None:
        self.star, self.objective, self.join_seconds = star, objective, join_seconds
        self.names: list[str] = []
        self.sizes = np.zeros(0, np.int64)
        self.numbers: dict[str, int] = {}
        self.seats: dict[Child, np.ndarray] = {}  # the numbers of the clients that each child holds
        self.rivals: dict[Child, float] = {}  # who holds clients that another child holds too, and since when

    def gather(self) -> None:
        """Wait for the workers that are expected, and number their clients.

        Raises:
            ValueError: nobody came.
        """
        self.star.gather()
        found: dict[str, int] = {}
        for child in sorted(self.star.children, key=lambda child: child.name):
            names, sizes = _held(child)
            double = next((name for name in names if name in found), None)
            if double is not None:
                self._refuse(
                    child, f"another worker has a client {double!r} too; set deployment.prefix to tell them apart"
                )
                continue
            found |= dict(zip(names, sizes, strict=True))
        if not found:
            raise ValueError("no worker with data has joined; start some, or raise transport.join_seconds")
        self.names = sorted(found)
        self.sizes = np.array([found[name] for name in self.names], np.int64)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self._seat()

    def _seat(self) -> None:
        """Tell those that have joined since which of the run's clients they hold."""
        self.seats = {child: held for child, held in self.seats.items() if child in self.star.children}
        for child in [c for c in self.star.children if c not in self.seats]:
            names, sizes = _held(child)
            wrong = [n for n, s in zip(names, sizes, strict=True) if self.sizes[self.numbers.get(n, 0)] != s]
            unknown = [name for name in names if name not in self.numbers] + wrong
            if unknown or not names:
                what = f"client {unknown[0]!r} with its samples" if unknown else "a worker without clients"
                self._refuse(child, f"the run was begun without {what}; start it again")
                continue
            held = np.array([self.numbers[name] for name in names], np.int64)
            taken = next((c for c, others in self.seats.items() if np.isin(held, others).any()), None)
            if taken is not None:
                # a worker that has joined again looks so until its old link is known to be lost
                since = self.rivals.setdefault(child, time.monotonic())
                if time.monotonic() - since > self.star.door.timeout and self.star.events.empty():
                    self._refuse(child, f"{taken.name} holds some of its clients")
                continue
            self.seats[child] = held
            fields = {"num_clients": len(self.names)}
            child.link.send(Message(kind="seat", fields=fields, tensors={"index": torch.from_numpy(held)}))

    def _refuse(self, child: Child, reason: str) -> None:
        log.warning(f"refused {child.name}: {reason}")
        self.star.children.remove(child)
        child.link.close(Message(kind="refused", fields={"reason": reason}))

    def run_round(self, job: Job) -> PartialAverage:
        """Let the cohort train where its data are; clients whose workers are gone are left out.

        Raises:
            ValueError: a client's loss or update is not finite, or nobody of the cohort was there for `join_seconds`.
        """
        vector, deadline = job.broadcast, time.monotonic() + self.join_seconds
        job = replace(job, broadcast=vector.cpu()).part(job.sizes > 0)
        left, running = np.ones(len(job.cohort), bool), dict[Child, Share]()  # clients nobody trains; who trains
        average: OnlineAverage | None = None
        metrics: list[dict[str, float]] = []
        before: dict[Child, tuple[int, int]] = {}
        failures: dict[str, list[str]] = {}  # by the worker's name: it joins again after each
        while True:
            self._seat()
            for child in [c for c in running if c not in self.star.children]:
                left |= np.isin(job.cohort, running.pop(child).job.cohort)
            for child, held in self.seats.items():
                before.setdefault(child, child.link.traffic)
                mine = left & np.isin(job.cohort, held)
                if mine.any() and child.share is None and len(failures.get(child.name, ())) < _TRIES:
                    running[child] = self._ask(child, job.part(mine))
                    left &= ~mine
            if not running and average is not None:
                break
            if not running and time.monotonic() > deadline:
                for name, reasons in failures.items():
                    raise ValueError(f"round {job.round}: {name} failed {len(reasons)} times: {reasons[-1]}")
                raise ValueError(
                    f"round {job.round}: no worker that holds a client of the cohort was there for "
                    f"{self.join_seconds:g} s; start them, and go on with checkpoint.resume"
                )
            event = self.star.next_event(_POLL)
            if event is None and average is not None:
                self._give_up(running)
            if event is not None:
                child, message = event
                share, child.share = running.pop(child, None), None
                try:
                    known = (None, None) if average is None else (len(average.total), average.total.dtype)
                    partial = answer(child, message, share, *known)
                except Unwanted as error:
                    self.star.drop(child, str(error))
                    failures.setdefault(child.name, []).append(str(error))
                    left |= np.isin(job.cohort, [] if share is None else share.job.cohort)
                    continue
                average = merged(average, partial)
                metrics.append(partial.metrics)
        if left.any():
            log.warning(
                f"round {job.round}: {left.sum()} of {len(left)} clients are out of reach; it goes on without them"
            )
        done = average.result(add_metrics([*metrics, traffic(before)]))
        return replace(done, total=done.total.to(vector.device))

    def _ask(self, child: Child, job: Job) -> Share:
        self.star.num_shares += 1
        share = Share(job=job, number=self.star.num_shares)
        child.share, child.begun = share, time.monotonic()
        child.link.send(share_message(job, share.number))
        return share

    def _give_up(self, children: Iterable[Child]) -> None:
        """Drop those that have not answered for too long; others have, so they could have too."""
        for child in list(children):
            if time.monotonic() - child.begun > self.star.share_seconds:
                self.star.drop(child, f"no answer for transport.share_seconds={self.star.share_seconds:g}")

    def evaluate(self, vector: Tensor) -> dict[str, float]:
        """Let the workers that are willing test a model (P + Q,) on their clients' test samples.

        Returns:
            test_loss, test_accuracy and so on over the samples of all that took part (left out where nobody did), and
            evaluated_workers, evaluated_clients, evaluated_samples; declined_workers are not asked.
        """
        self._seat()
        asked, totals, taken = set[Child](), dict.fromkeys(sums(self.objective), 0.0), 0
        declined = [child for child in self.seats if not (child.holds or {}).get("evaluate")]
        for child in self.seats:
            if child not in declined:
                child.link.send(Message(kind="evaluate", tensors={"vector": vector.cpu()}))
                child.begun = time.monotonic()
                asked.add(child)
        answered = 0
        while asked := {child for child in asked if child in self.star.children}:
            event = self.star.next_event(_POLL)
            if event is None:
                if answered:
                    self._give_up(asked)
                continue
            child, message = event
            found = [message.fields.get(name) for name in totals]
            if child not in asked or message.kind != "metrics" or not all(isinstance(v, float) for v in found):
                self.star.drop(child, f"it answered {message.kind!r} where metrics were asked")
                continue
            asked.remove(child)
            answered += 1
            taken += message.fields["samples"] > 0
            totals = {name: total + message.fields[name] for name, total in totals.items()}
        figures: dict[str, float] = {
            "evaluated_workers": taken,
            "declined_workers": len(declined),
            "evaluated_clients": int(totals["clients"]),
            "evaluated_samples": int(totals["samples"]),
        }
        if totals["places"]:
            told = {name.removeprefix("sum_"): total for name, total in totals.items() if name.startswith("sum_")}
            figures |= {f"test_{name}": total / totals["places"] for name, total in told.items()}
        return figures

    def close(self) -> None:
        """Tell the workers that the run has ended."""
        self.star.close()


def _held(child: Child) -> tuple[Sequence[str], Sequence[int]]:
    """Names and sizes of a worker's clients; none, if what it says is no such thing."""
    holds: dict[str, Any] = child.holds or {}
    names, sizes = holds.get("names"), holds.get("sizes")
    sound = (
        isinstance(names, list)
        and isinstance(sizes, list)
        and len(names) == len(sizes) == len(set(map(str, names)))
        and all(isinstance(name, str) for name in names)
        and all(type(size) is int and size >= 0 for size in sizes)
    )
    return (names, sizes) if sound and names is not None and sizes is not None else ([], [])


class RemoteExaminer:
    """`fedsim.examine.Examines` of models on data that others hold: means over all who take part, nobody's own."""

    sees_clients = False
    test = "with the clients"

    def __init__(self, owners: Owners) -> None:
        self.owners = owners

    def central(self, vector: Tensor, round: int, *, whole: bool) -> dict[str, float]:
        """`Owners.evaluate`; a quick look is as thorough as any."""
        return self.owners.evaluate(vector)

    def clients(self, vector: Tensor, round: int, own: object = None) -> pd.DataFrame:
        """Raises ValueError: single clients' figures stay with them."""
        raise ValueError("data=remote: the figures of single clients stay with their workers")

    def training_losses(self, vector: Tensor, clients: np.ndarray) -> np.ndarray:
        """Raises ValueError: the server would have to ask every client for its loss."""
        raise ValueError("data=remote: the server does not know the clients' losses; choose another sampler")
