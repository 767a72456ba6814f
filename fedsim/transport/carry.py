"""Clients' vectors on their way: down with a share of a round, up with its partial average.

The server has every vector that a client keeps (`fedsim.client_state`), so that a worker may die at any time. A share
carries those of its clients down and their new ones up; a worker keeps none. What comes up is taken together with
the partial average, once, from whoever was first, and lasts when the whole round has ended well.

Updates that must be seen one by one, by a robust rule or by attackers who collude, come up in the same way
(`fedsim.uplink`). A share has only so many clients that all this fits into one message of a bounded size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from fedsim.aggregate import ClientRows, OnlineAverage, PartialAverage, merged
from fedsim.client_state import ClientVectors
from fedsim.train.training import Training
from fedsim.transport.base import Job
from fedsim.transport.inprocess import InProcess
from fedsim.uplink import Uplink
from fedsim.uplink.receiver import PLOTTED, UPDATES


class Books(Protocol):
    """What becomes of the pieces of one round."""

    def down(self, clients: np.ndarray) -> Mapping[str, ClientRows]:
        """What these clients (n,) have kept so far, by name of the vector."""
        ...

    def check(self, partial: PartialAverage, job: Job) -> None:
        """Raises ValueError where this cannot be the result of a share."""
        ...

    def take(self, partial: PartialAverage) -> None:
        """Add a piece: nothing of it has been taken before, and its clients are in no other."""
        ...

    def result(self, metrics: dict[str, float]) -> PartialAverage:
        """All pieces have been taken; `metrics` are sums over them."""
        ...


class Relay:
    """The books of a node that keeps nothing: what comes from above goes down, what comes from below goes up."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.average: OnlineAverage | None = None
        self.rows: dict[str, list[ClientRows]] = {}

    def down(self, clients: np.ndarray) -> Mapping[str, ClientRows]:
        return {name: found.part(clients) for name, found in self.job.rows.items()}

    def check(self, partial: PartialAverage, job: Job) -> None:
        if self.average is not None and (
            len(partial.total) != len(self.average.total) or partial.total.dtype != self.average.total.dtype
        ):
            raise ValueError("it sent an average of another model")
        for found in partial.rows.values():
            if not np.isin(found.clients, job.cohort).all():
                raise ValueError("it sent vectors of clients that it was not given")

    def take(self, partial: PartialAverage) -> None:
        self.average = merged(self.average, partial)
        for name, found in partial.rows.items():
            self.rows.setdefault(name, []).append(found)

    def result(self, metrics: dict[str, float]) -> PartialAverage:
        assert self.average is not None, "a job has a client with samples"
        return replace(self.average.result(metrics), rows={n: ClientRows.join(r) for n, r in self.rows.items()})


class ServerBooks:
    """The books of the node that keeps everything, for one round."""

    def __init__(self, ledger: "Ledger", job: Job) -> None:
        self.states, uplink = ledger.states, ledger.uplink  # the states are the same for the whole round
        clients = job.cohort[job.sizes > 0]
        self.receiver = None if uplink is None else uplink.collect(job.round, clients, job.scale)
        self.uplink = {} if uplink is None else uplink.pipeline.snapshot()  # what the transforms' client sides see
        self.relay = Relay(job)
        self.expected = set(self.states)
        if uplink is not None and uplink.aggregator.rule is not None:
            self.expected.add(UPDATES)
        self.total: tuple[int, torch.dtype] | None = None  # of what comes up, if it is known
        if self.receiver is not None:
            average = self.receiver.average
            self.total = (0, torch.float64) if average is None else (len(average.total), average.total.dtype)
        elif ledger.training is not None:
            self.total = ledger.training.update_size(prelude=job.prelude), ledger.training.sum_dtype
        self.sizes = {name: state.size for name, state in self.states.items()}
        if uplink is not None:
            self.sizes |= {UPDATES: uplink.size, PLOTTED: uplink.size}

    def down(self, clients: np.ndarray) -> Mapping[str, ClientRows]:
        found = {}
        for name, state in self.states.items():
            known = clients[state.known(clients)]
            if len(known):
                found[name] = ClientRows(clients=known, rows=state.read(known))
        return found

    def check(self, partial: PartialAverage, job: Job) -> None:
        self.relay.check(partial, job)
        if self.total not in (None, (len(partial.total), partial.total.dtype)):
            raise ValueError("it sent an average of another length or dtype than this run has")
        plotted = partial.rows[PLOTTED].clients if PLOTTED in partial.rows else job.cohort[:0]
        honest = np.setdiff1d(job.cohort, plotted)
        wanted = self.expected if len(honest) else self.expected & {"state"}
        if not wanted <= partial.rows.keys() <= self.expected | ({PLOTTED} & self.sizes.keys()):
            raise ValueError(f"it sent vectors named {sorted(partial.rows)}, not {sorted(wanted)}")
        for name, found in partial.rows.items():
            of = {PLOTTED: plotted, "state": np.sort(job.cohort)}.get(name, honest)
            weights = None if found.weights is None else len(found.weights)
            if not np.array_equal(np.sort(found.clients), np.sort(of)) or len(set(of.tolist())) < len(of):
                raise ValueError(f"it sent vectors {name!r} of other clients than it was given")
            if found.rows.shape != (len(of), self.sizes[name]):
                raise ValueError(f"it sent vectors {name!r} of another length")
            if weights != (len(of) if name in (UPDATES, PLOTTED) else None):
                raise ValueError(f"it sent vectors {name!r} with other weights than they have")

    def take(self, partial: PartialAverage) -> None:
        for name, state in self.states.items():
            if name in partial.rows:  # what was trained here has been written already
                state.write(partial.rows[name].clients, partial.rows[name].rows)
        if self.receiver is None:
            self.relay.take(replace(partial, rows={}))
        else:
            self.receiver.merge(partial)

    def result(self, metrics: dict[str, float]) -> PartialAverage:
        return self.relay.result(metrics) if self.receiver is None else self.receiver.result(metrics)


class Ledger:
    """What clients keep, and the uplink, of a node that trains: the server, or a worker for the time of a share.

    Args:
        own: trains here.
        uplink: of the run; None: updates are averaged, and no more.
        training: of the run, at the server, against which what comes up is held.
    """

    def __init__(self, own: InProcess, uplink: Uplink | None, training: Training | None = None) -> None:
        self.own, self.uplink, self.training = own, uplink, training

    @property
    def states(self) -> dict[str, ClientVectors]:
        """The vectors that clients keep, by name."""
        kept = [self.own.trainer.clients, *(self.uplink.memories if self.uplink is not None else ())]
        return {state.name: state for state in kept if state is not None}

    @property
    def row_bytes(self) -> int:
        """Of one client's vectors in one message, at most; 0: none travel."""
        found = sum(state.row_bytes for state in self.states.values())
        if self.uplink is not None and self.uplink.forwards:
            found += self.uplink.size * self.uplink.like.element_size()
        return found

    @contextmanager
    def open(self, job: Job) -> Iterator[ServerBooks]:
        """The books of a round at the server; what clients keep lasts if it ends well."""
        with self._round():
            yield ServerBooks(self, job)

    def train(self, job: Job) -> PartialAverage:
        """A share at a worker, whose clients' vectors came with it and go back with the result.

        Raises:
            ValueError: a client is not finite, or the share carries what this node does not know.
        """
        states = self.states
        if not job.rows.keys() <= states.keys():
            raise ValueError(f"vectors named {sorted(job.rows)} came with a share; this node has {sorted(states)}")
        for name, state in states.items():
            state.restore({})
            if name in job.rows:
                state.write(job.rows[name].clients, job.rows[name].rows)
                state.commit()
        if self.uplink is not None:
            self.uplink.pipeline.restore(dict(job.uplink))
        with self._round():
            partial, rows = self.own.run_round(job), {}
            for name, state in states.items():
                if state.pending:
                    clients = np.array(sorted(state.pending), np.int64)
                    rows[name] = ClientRows(clients=clients, rows=state.read(clients))
        for state in states.values():
            state.restore({})
        return replace(partial, rows={**partial.rows, **rows})

    @contextmanager
    def _round(self) -> Iterator[None]:
        with self.own.trainer.memory.settled():
            if self.uplink is None:
                yield
            else:
                with self.uplink.pieces():
                    yield


class Carrying:
    """A worker's transport: every share as `Ledger.train` has it."""

    def __init__(self, own: InProcess, uplink: Uplink | None) -> None:
        self.own = own
        self.run_round = Ledger(own, uplink).train

    def close(self) -> None:
        self.own.close()
