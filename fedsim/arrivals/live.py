"""Updates arrive when other processes have them: `fedsim.transport.dispatch`."""

import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.arrivals.base import Arrival, Buffer
from fedsim.events import draw, idle
from fedsim.transport.base import MakeJob, Transport, add_metrics
from fedsim.transport.dispatch import Dispatch, Trained


@dataclass(kw_only=True, eq=False)
class Live:
    """Free workers are sent clients, drawn as in virtual time, whose updates count in the order in which they come.

    Attributes:
        work: (C,) samples that each client computes.
        download_bytes, upload_bytes: to and from each client.
        concurrency: most clients at work at any time; there are no more than workers.
        seed: of the draws.
        seconds: real time since the run began, without that between an end and a resume.
        draws: how often clients were drawn.
        at_work: (client, version) of those sent, in order, until they have arrived.
        again: those at work when the run was broken off; nobody has been sent them yet.
        found: those that have arrived since the last step.
        partials: their averages, by version.
    """

    work: np.ndarray
    download_bytes: int
    upload_bytes: int
    concurrency: int
    seed: int
    seconds: float = 0.0
    draws: int = 0
    at_work: list[tuple[int, int]] = field(default_factory=list)
    again: list[tuple[int, int]] = field(default_factory=list)
    found: list[Arrival] = field(default_factory=list)
    partials: dict[int, PartialAverage] = field(default_factory=dict)
    origin: float | None = None  # time.monotonic() when the run began

    def first(self, num_updates: int, version: int) -> list[tuple[int, int]]:
        """The client with most work, for it takes most memory."""
        return [(int(self.work.argmax()), version)]

    def collect(self, num_updates: int, version: int, make_job: MakeJob, transport: Transport) -> Buffer:
        assert isinstance(transport, Dispatch)
        while len(self.found) < num_updates:
            self._fill(version, make_job, transport)
            done = transport.next(make_job)
            if done is not None:
                self._take(done, version + 1)
        arrived = self._arrived
        figures = transport.figures()
        return Buffer(
            arrived=arrived,
            # copies, for the server uses them up, and may be interrupted
            partials=((old, replace(p, total=p.total.clone())) for old, p in sorted(self.partials.items())),
            needed={old for _, old in self.at_work},
            metrics={
                "wall_seconds": self.seconds,
                "bytes_down": figures["started"] * self.download_bytes,
                "bytes_up": len(arrived) * self.upload_bytes,
                **figures,
            },
            rows=[asdict(arrival) for arrival in self.found],
        )

    def settle(self, version: int, make_job: MakeJob, transport: Transport) -> None:
        """Workers without work go on at once, and not only when the model has been evaluated and saved."""
        assert isinstance(transport, Dispatch)
        self.found, self.partials = [], {}
        self._fill(version, make_job, transport)

    @property
    def _arrived(self) -> list[tuple[int, int]]:
        return [(arrival.client, arrival.version) for arrival in self.found]

    def _fill(self, version: int, make_job: MakeJob, dispatch: Dispatch) -> None:
        """Send as many clients as there are workers without work, first those of a run that was broken off."""
        if self.origin is None:
            self.origin = time.monotonic() - self.seconds
        free = dispatch.free(make_job)
        while free and self.again:
            dispatch.send(*self.again.pop(0), make_job)
            free -= 1
        wanted = min(self.concurrency - len(self.at_work), free)
        candidates = idle(self.work, (client for client, _ in self.at_work), self._arrived, version)
        if wanted > 0 and len(candidates):
            self.draws += 1
            for client in draw(self.seed, self.draws, candidates, wanted).tolist():
                self.at_work.append((client, version))
                dispatch.send(client, version, make_job)

    def _take(self, done: Trained, round: int) -> None:
        assert self.origin is not None
        self.seconds = time.monotonic() - self.origin
        partial, before = done.partial, self.partials.get(done.version)
        if before is not None:
            metrics = add_metrics((before.metrics, partial.metrics))
            total = partial.total.add_(before.total)
            partial = replace(partial, total=total, weight=before.weight + partial.weight, metrics=metrics)
        self.partials[done.version] = partial
        self.found.append(
            Arrival(
                round=round,
                client=done.client,
                version=done.version,
                worker=done.worker,
                seconds=self.seconds,
                training_seconds=done.seconds,
            )
        )
        self.at_work.remove((done.client, done.version))

    def state_dict(self) -> dict[str, Tensor]:
        """Updates that wait for a step are not kept: their clients count as at work, and train again."""
        return {
            "seconds": torch.tensor([self.seconds], dtype=torch.float64),
            "draws": torch.tensor([self.draws]),
            "at_work": torch.tensor([*self._arrived, *self.at_work], dtype=torch.int64).view(-1, 2),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seconds, self.draws = state["seconds"].item(), int(state["draws"].item())
        self.at_work = [(client, version) for client, version in state["at_work"].tolist()]
        self.again = list(self.at_work)
