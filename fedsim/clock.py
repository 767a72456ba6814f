"""The virtual clock of synchronous rounds: who reports in time, how long a round takes, what is sent.

A round asks more clients than it needs (over-selection) and ends when enough of them have reported, when all have
reported or are lost, or at the deadline: Bonawitz et al. 2019, "Towards Federated Learning at Scale: System Design",
section 2.2. Who comes later is a straggler, whose work is lost; or, with `partial_work`, who would come after the
deadline stops in time and sends what it has: Li et al. 2020, "Federated Optimization in Heterogeneous Networks",
section 3.2. Without devices all clients count as equal ones, which changes nothing but tells the time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.config import LocalConfig, ServerConfig
from fedsim.devices import EQUAL, Devices, drawn, samples_trained, steps_taken, work_done
from fedsim.sampling import cohort_size

# A round that nobody reports in is tried again, so often.
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How a round went.

    Attributes:
        reported: (m,) int64, sorted: the clients whose updates count.
        seconds: from the server's request to the end of the round, attempts that failed included.
        started: clients that were sent the model.
        lost: clients among them that gave up before the round ended.
        max_steps: (m,) int64: local steps after which those who reported have stopped; None: all took all of theirs.
    """

    reported: np.ndarray
    seconds: float
    started: int
    lost: int
    max_steps: np.ndarray | None = None

    @property
    def stragglers(self) -> int:
        """Clients that were still at work, or had just been beaten, when the round ended."""
        return self.started - self.lost - len(self.reported)


@dataclass(kw_only=True, eq=False)
class Clock:
    """Virtual time of a synchronous run.

    Attributes:
        devices: of all clients; None: nothing is known of them, so that everybody has the one of devices=equal, and
            reports.
        work: (m,) clients, round -> (m,) samples that each of them computes in it.
        download_bytes, upload_bytes: to and from each client in a round.
        wanted: reports that end a round; None: all.
        deadline: virtual seconds after which a round ends; None: it waits.
        steps: (m,) clients, round -> (m,) int64 local steps of each of them in it, if who would miss the deadline sends
            what it has done; None: it sends nothing.
        before: (m,) clients -> (m,) samples of the pass that goes before (`Algorithm.prelude`), a trip of its own whose
            bytes are in those above; None: there is none.
        repeats: whether a round in which nobody reports is tried again; else it ends without a report.
        group_rounds: rounds that a group does in a round, each with its download and upload; only without devices.
        seconds: virtual time so far; the only thing that changes, and part of checkpoints.
    """

    devices: Devices | None
    work: Callable[[np.ndarray, int], np.ndarray]
    download_bytes: int
    upload_bytes: int
    wanted: int | None = None
    deadline: float | None = None
    steps: Callable[[np.ndarray, int], np.ndarray] | None = None
    before: Callable[[np.ndarray], np.ndarray] | None = None
    repeats: bool = True
    group_rounds: int = 1
    seconds: float = 0.0

    def round(self, round: int, cohort: np.ndarray) -> Outcome:
        """What happens when the clients `cohort` are asked to train in a round; changes nothing.

        A client that gives up is noticed at once. A round in which nobody reports in time is tried again with the same
        clients, on another occasion of each, if it `repeats`.

        Raises:
            ValueError: it was tried in vain a thousand times.
        """
        if self.devices is None:
            return self._equal(round, cohort)
        seconds, started, lost = 0.0, 0, 0
        cohort = np.sort(cohort[self.work(cohort, round) > 0])
        if not len(cohort):  # Poisson sampling may draw nobody
            return Outcome(reported=cohort, seconds=0.0, started=0, lost=0)
        for attempt in range(_MAX_ATTEMPTS):
            occasion = round + (attempt << 32)
            clients = cohort[self.devices.available(cohort, occasion)]
            duration = self._seconds(self.devices, clients, occasion, self.work(clients, round), clients)
            taken = None
            if self.steps is not None:
                taken, duration = self._cut(self.devices, clients, self.steps(clients, round), occasion, duration)
            gives_up = self.devices.gives_up(clients, occasion)
            reports = np.isinf(gives_up)
            ends = np.where(reports, duration, duration * np.minimum(gives_up, 1))
            order = np.lexsort((clients, ends))
            in_time = order[reports[order]][: self.wanted]
            enough = self.wanted is not None and len(in_time) == self.wanted
            end = float(ends[in_time[-1]] if enough else ends.max(initial=0.0))
            if self.deadline is not None and end > self.deadline:
                end = self.deadline
                in_time = in_time[ends[in_time] <= end]
            seconds += end
            started += len(clients)
            lost += int((~reports & (ends <= end)).sum())
            if len(in_time) or not self.repeats:
                in_time = np.sort(in_time)
                return Outcome(
                    reported=clients[in_time],
                    seconds=seconds,
                    started=started,
                    lost=lost,
                    max_steps=None if taken is None else taken[in_time],
                )
        limit = "" if self.deadline is None else f" within server.deadline={self.deadline} virtual seconds"
        raise ValueError(
            f"round {round}: none of {len(cohort)} clients reported{limit} in {_MAX_ATTEMPTS} attempts; look at the "
            "devices' availability and dropout, raise the deadline, or sample more clients"
        )

    def _equal(self, round: int, cohort: np.ndarray) -> Outcome:
        """All report; it takes as long as the most work takes."""
        work = self.work(cohort, round)
        if not work.any():
            return Outcome(reported=cohort, seconds=0.0, started=0, lost=0)
        device, seconds = drawn(1, [""], 0, **EQUAL), 0.0
        for r in range((round - 1) * self.group_rounds + 1, round * self.group_rounds + 1):  # as in `train_group`
            taken = self.work(cohort, r) + (0 if self.before is None else self.before(cohort))
            most = cohort[[taken.argmax()]]
            seconds += float(self._seconds(device, np.zeros(1, np.int64), r, self.work(most, r), most)[0])
        started = int(np.count_nonzero(work))
        return Outcome(reported=cohort, seconds=seconds, started=started, lost=0)

    def _seconds(
        self, devices: Devices, places: np.ndarray, occasion: int, samples: np.ndarray, clients: np.ndarray
    ) -> np.ndarray:
        """(m,): how long clients take on the devices `places` (m,) for these samples, and for the pass before them."""
        return devices.seconds(
            places,
            occasion,
            samples if self.before is None else samples + self.before(clients),
            download_bytes=self.download_bytes,
            upload_bytes=self.upload_bytes,
            num_trips=1 if self.before is None else 2,
        )

    def _cut(
        self, devices: Devices, clients: np.ndarray, whole: np.ndarray, occasion: int, duration: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps that clients (m,) take of `whole`, and the seconds until they report, if they stop for the deadline.

        A client's steps are taken to last alike. One that has not a single step done in time does not stop.
        """
        assert self.deadline is not None
        moving = self._seconds(devices, clients, occasion, np.zeros(len(clients)), clients)
        late = duration > self.deadline
        done = np.zeros(len(clients))
        np.divide(whole * (self.deadline - moving), duration - moving, out=done, where=late & (duration > moving))
        stops = done >= 1
        return np.where(stops, done.astype(np.int64), whole), np.where(stops, self.deadline, duration)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"seconds": torch.tensor([self.seconds], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seconds = state["seconds"].item()

    def metrics(self, outcome: Outcome) -> dict[str, float]:
        """For the row of a round, when its time has been added."""
        if self.devices is None:
            return {"virtual_seconds": self.seconds}
        return {
            "virtual_seconds": self.seconds,
            "bytes_down": outcome.started * self.download_bytes,
            "bytes_up": len(outcome.reported) * self.upload_bytes,
            "started": outcome.started,
            "lost": outcome.lost,
            "stragglers": outcome.stragglers,
        }


def clients_asked(config: ServerConfig, num_clients: int) -> int | float:
    """How many clients a round asks: `clients_per_round` as it is, or the number that over-selection makes of it."""
    if config.over_selection == 1:
        return config.clients_per_round
    return min(num_clients, math.ceil(cohort_size(config.clients_per_round, num_clients) * config.over_selection))


def make_clock(
    devices: Devices | None,
    sizes: np.ndarray,
    local: LocalConfig,
    config: ServerConfig,
    *,
    download_bytes: int,
    upload_bytes: int,
    prelude: bool = False,
    repeats: bool = True,
    seed: int = 0,
) -> Clock:
    """The clock of a run.

    Args:
        devices: of all clients; None: nothing is known of them.
        sizes: (C,) training samples of each.
        local: says how many of them a round computes.
        config: says when a round ends.
        download_bytes, upload_bytes: to and from each client in a round.
        prelude: whether a pass over the clients' samples goes before each round.
        repeats: see `Clock`.
        seed: of the run, under which stragglers are drawn.

    Raises:
        ValueError: a round shall end early, but nobody knows how fast the clients are.
    """
    if devices is None and (config.over_selection > 1 or config.deadline is not None):
        raise ValueError("server.over_selection and server.deadline need to know how fast clients are: set devices")

    def part(clients: np.ndarray, round: int) -> np.ndarray | None:
        return work_done(clients, local, seed, round) if local.straggler_share else None

    return Clock(
        devices=devices,
        work=lambda clients, round: samples_trained(sizes[clients], local, part(clients, round)),
        download_bytes=download_bytes,
        upload_bytes=upload_bytes,
        wanted=cohort_size(config.clients_per_round, len(sizes)) if config.over_selection > 1 else None,
        deadline=config.deadline,
        steps=(lambda clients, round: steps_taken(sizes[clients], local, part(clients, round)))
        if config.partial_work
        else None,
        before=(lambda clients: sizes[clients]) if prelude else None,
        repeats=repeats,
        group_rounds=config.group_rounds,
    )
