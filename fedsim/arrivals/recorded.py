"""Updates arrive as they did in a run before, whose directory has an arrivals.csv."""

import csv
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.arrivals.base import Arrival, Buffer, train
from fedsim.transport.base import MakeJob, Transport


class Recorded:
    """Replays an order; who trains, and how many at once, moves nothing.

    Args:
        rounds: the arrivals of each.
        source: where they come from, for errors.
    """

    def __init__(self, rounds: list[list[Arrival]], source: str) -> None:
        self.rounds, self.source, self.seconds = rounds, source, 0.0
        self.last_use = {arrival.version: arrival.round for arrivals in rounds for arrival in arrivals}

    def first(self, num_updates: int, version: int) -> list[tuple[int, int]]:
        return [(arrival.client, arrival.version) for arrival in self._round(version)]

    def collect(self, num_updates: int, version: int, make_job: MakeJob, transport: Transport) -> Buffer:
        arrived, arrivals = self.first(num_updates, version), self._round(version)
        return Buffer(
            arrived=arrived,
            partials=train(arrived, make_job, transport),
            needed={old for old, last in self.last_use.items() if old <= version and last > version + 1},
            metrics={"wall_seconds": arrivals[-1].seconds},
            rows=[asdict(arrival) for arrival in arrivals],
        )

    def settle(self, version: int, make_job: MakeJob, transport: Transport) -> None:
        self.seconds = self._round(version - 1)[-1].seconds

    def _round(self, version: int) -> list[Arrival]:
        """Those that arrive while the model is at `version`."""
        if version >= len(self.rounds):
            raise ValueError(f"{self.source} has {version} rounds and no more: set server.num_rounds={version}")
        return self.rounds[version]

    def state_dict(self) -> dict[str, Tensor]:
        return {"seconds": torch.tensor([self.seconds], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seconds = state["seconds"].item()


def read_arrivals(path: str, sizes: np.ndarray, num_updates: int) -> Recorded:
    """The arrivals of a run whose clients had `sizes` (C,) samples and whose server stepped with `num_updates`.

    Raises:
        ValueError: there is no such file, or it is of another run.
    """
    source, rounds = f"server.arrivals={path}", defaultdict[int, list[Arrival]](list)
    try:
        text = Path(path).read_text(encoding="utf-8")
        for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):  # a crash may have cut the last line
            arrival = Arrival(
                round=int(row["round"]),
                client=int(row["client"]),
                version=int(row["version"]),
                worker=row["worker"],
                seconds=float(row["seconds"]),
                training_seconds=float(row["training_seconds"]),
            )
            rounds[arrival.round].append(arrival)
    except OSError as error:
        raise ValueError(f"{source}: {error.strerror}; give the arrivals.csv of a run's directory") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not an arrivals.csv of fedsim, or it is damaged ({error!r})") from None
    for number, (round, arrivals) in enumerate(rounds.items(), start=1):
        if round != number or len(arrivals) != num_updates:
            raise ValueError(
                f"{source} has {len(arrivals)} updates of round {round} where {num_updates} of round {number} are "
                "due: take algorithm and algorithm.buffer_size of the run that has written it"
            )
        seen = {(a.client, a.version) for a in arrivals if 0 <= a.client < len(sizes) and sizes[a.client] > 0}
        if len(seen) < len(arrivals) or not all(0 <= version < round for _, version in seen):
            raise ValueError(f"{source}: round {round} has updates that this run's clients cannot send: take its data")
    return Recorded(list(rounds.values()), source)
