"""The event queue of asynchronous runs: who trains from which version of the model, and when the update arrives.

Nothing here depends on what is learned: arrivals follow from the devices alone. So the queue runs ahead until the
server has the updates it waits for, and only then are the clients trained, those of one version together.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.config import LocalConfig, ServerConfig
from fedsim.devices import Devices, samples_trained
from fedsim.rng import stream
from fedsim.sampling import cohort_size

# Draws in vain, while nobody is at work, after which the run gives up.
_MAX_DRAWS = 10_000


def idle(work: np.ndarray, at_work: Iterable[int], arrived: Iterable[tuple[int, int]], version: int) -> np.ndarray:
    """Whom the server may send its model of this version: those with samples to compute (`work` (C,) is above 0) that
    are not at work, and did not bring an update of this version already."""
    free = work > 0
    free[list(at_work)] = False
    free[[client for client, from_version in arrived if from_version == version]] = False
    return np.flatnonzero(free)


def draw(seed: int, number: int, candidates: np.ndarray, wanted: int) -> np.ndarray:
    """The clients of draw `number`, rising: so many of the candidates, or all, uniformly."""
    rng = stream(seed, "cohort", number)
    return np.sort(rng.choice(candidates, min(wanted, len(candidates)), replace=False, shuffle=False))


@dataclass(frozen=True, kw_only=True, order=True)
class Trip:
    """A client at work; ordered by the time of its end, then by when it was drawn.

    Attributes:
        end: virtual time at which the update arrives, or the client is lost.
        number: of the draw, from 1.
        client: who; clients of one draw are in rising order.
        version: of the model that it started from.
        lost: it gives up at `end`.
    """

    end: float
    number: int
    client: int
    version: int
    lost: bool


@dataclass(kw_only=True, eq=False)
class Queue:
    """The state of an asynchronous run beside its vectors.

    Attributes:
        devices: of all clients.
        work: (C,) samples that each client computes.
        download_bytes, upload_bytes: to and from each client.
        concurrency: clients at work at any time, where enough are there.
        seed: of the draws.
        seconds: virtual time so far.
        draws: how often clients were drawn.
        trips: the clients at work, a heap.
        arrived: (client, version) of the updates that the server has not used yet, as they came.
    """

    devices: Devices
    work: np.ndarray
    download_bytes: int
    upload_bytes: int
    concurrency: int
    seed: int
    seconds: float = 0.0
    draws: int = 0
    trips: list[Trip] = field(default_factory=list)
    arrived: list[tuple[int, int]] = field(default_factory=list)

    def copy(self) -> "Queue":
        """Changes of the copy leave this one as it is."""
        return replace(self, trips=list(self.trips), arrived=list(self.arrived))

    def run(self, num_updates: int, version: int) -> dict[str, float]:
        """Advance until so many updates have arrived, the model being at `version` all the while.

        Free places are filled before time goes on, when everything of an instant has arrived; so of clients that
        arrive at one instant all are taken before others start, unless the server has enough before.

        Returns:
            started, lost, bytes_down and bytes_up since the last call.

        Raises:
            ValueError: nobody can be found to train.
        """
        started = lost = 0
        before = len(self.arrived)
        while len(self.arrived) < num_updates:
            started += self._fill(version)
            instant = self.trips[0].end
            self.seconds = instant
            while self.trips and self.trips[0].end == instant and len(self.arrived) < num_updates:
                trip = heapq.heappop(self.trips)
                if trip.lost:
                    lost += 1
                else:
                    self.arrived.append((trip.client, trip.version))
        return {
            "started": started,
            "lost": lost,
            "bytes_down": started * self.download_bytes,
            "bytes_up": (len(self.arrived) - before) * self.upload_bytes,
        }

    def _fill(self, version: int) -> int:
        """Draw clients for the free places, among the idle ones that are there; returns how many have started."""
        wanted = self.concurrency - len(self.trips)
        if wanted <= 0:
            return 0
        candidates = idle(self.work, (trip.client for trip in self.trips), self.arrived, version)
        for _ in range(1 if self.trips else _MAX_DRAWS):
            self.draws += 1
            there = candidates[self.devices.available(candidates, self.draws)]
            if len(there):
                break
        else:
            if self.trips:
                return 0
            raise ValueError(
                f"virtual time {self.seconds:.0f} s: nobody is at work, and none of {len(candidates)} clients was "
                f"there in {_MAX_DRAWS} draws; raise devices.availability"
            )
        clients = draw(self.seed, self.draws, there, wanted)
        seconds = self.devices.seconds(
            clients,
            self.draws,
            self.work[clients],
            download_bytes=self.download_bytes,
            upload_bytes=self.upload_bytes,
        )
        gives_up = self.devices.gives_up(clients, self.draws)
        ends = self.seconds + seconds * np.minimum(gives_up, 1)
        for client, end, lost in zip(clients.tolist(), ends.tolist(), np.isfinite(gives_up).tolist(), strict=True):
            trip = Trip(end=end, number=self.draws, client=client, version=version, lost=lost)
            heapq.heappush(self.trips, trip)
        return len(clients)

    def versions(self) -> set[int]:
        """From which versions of the model somebody has started whose update was not used yet."""
        return {trip.version for trip in self.trips} | {version for _, version in self.arrived}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs: exact, since all of it is integers and float64."""
        trips = [(t.number, t.client, t.version, t.lost) for t in self.trips]
        return {
            "seconds": torch.tensor([self.seconds], dtype=torch.float64),
            "draws": torch.tensor([self.draws]),
            "trips": torch.tensor(trips, dtype=torch.int64).view(-1, 4),
            "ends": torch.tensor([t.end for t in self.trips], dtype=torch.float64),
            "arrived": torch.tensor(self.arrived, dtype=torch.int64).view(-1, 2),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.seconds, self.draws = state["seconds"].item(), int(state["draws"].item())
        self.trips = [
            Trip(end=end, number=number, client=client, version=version, lost=bool(lost))
            for end, (number, client, version, lost) in zip(
                state["ends"].tolist(), state["trips"].tolist(), strict=True
            )
        ]
        self.arrived = [(client, version) for client, version in state["arrived"].tolist()]


def make_queue(
    devices: Devices | None,
    sizes: np.ndarray,
    local: LocalConfig,
    config: ServerConfig,
    *,
    download_bytes: int,
    upload_bytes: int,
    seed: int,
) -> Queue:
    """The queue of a run, at its beginning; `config.clients_per_round` clients are at work at any time.

    Args:
        devices: of all clients.
        sizes: (C,) training samples of each.
        local: says how many of them a client computes.
        config: of the server.
        download_bytes, upload_bytes: to and from each client.
        seed: of the run.

    Raises:
        ValueError: there are no devices, or settings of synchronous rounds.
    """
    if devices is None:
        raise ValueError(
            "an asynchronous algorithm takes updates as they arrive: set devices, for example devices=phones, or "
            "transport=torch_distributed, where they arrive in real time"
        )
    refuse_ends(config)
    return Queue(
        devices=devices,
        work=samples_trained(sizes, local),
        download_bytes=download_bytes,
        upload_bytes=upload_bytes,
        concurrency=cohort_size(config.clients_per_round, len(sizes)),
        seed=seed,
    )


def refuse_ends(config: ServerConfig) -> None:
    """Refuse settings that end rounds.

    Raises:
        ValueError: names them.
    """
    if config.over_selection > 1 or config.deadline is not None:
        raise ValueError("server.over_selection and server.deadline end rounds; an asynchronous algorithm has none")
