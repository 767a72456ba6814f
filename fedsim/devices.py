"""Devices: how fast the clients compute and send, and how often they are there.

A device decides when a client's update arrives, never what it is. What lasts (speed, bandwidth, latency) is a function
of (seed, client); what changes (a slow day, being there, giving up) of (seed, client, round). All of it comes from
`fedsim.rng`, so that a resumed run meets the same devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from fedsim.config import LocalConfig
from fedsim.rng import counter_hash

Numbers = np.ndarray


class Distribution(Protocol):
    """Where a quantity of a device is drawn from."""

    def quantile(self, u: Numbers) -> Numbers:
        """Uniform (n,) in (0, 1) -> (n,) draws."""
        ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Between `low` and `high`."""

    low: float
    high: float

    def quantile(self, u: Numbers) -> Numbers:
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """exp(N(log(median), sigma^2))."""

    median: float
    sigma: float

    def quantile(self, u: Numbers) -> Numbers:
        return self.median * np.exp(self.sigma * _normal(u))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of `values`, the i-th with a chance proportional to weights[i]; without weights all alike."""

    values: Sequence[float]
    weights: Sequence[float] | None = None

    def quantile(self, u: Numbers) -> Numbers:
        weights = np.ones(len(self.values)) if self.weights is None else np.asarray(self.weights, float)
        if len(weights) != len(self.values) or weights.min() < 0 or weights.sum() == 0:
            raise ValueError(f"devices: {len(self.values)} values need as many weights, none negative, got {weights}")
        edges = np.cumsum(weights) / weights.sum()
        return np.asarray(self.values, float)[np.searchsorted(edges, u)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Devices:
    """The devices of C clients; each array is (C,) float64.

    Attributes:
        samples_per_second: speed of training; inf takes no time.
        download: bytes per second from the server to the client.
        upload: bytes per second back.
        latency: seconds before a transfer begins, in either direction.
        availability: chance that the client can start when it is asked.
        dropout: chance that a client that has started never reports.
        jitter: sigma of the log-normal factor (median 1) on the time to train, drawn for each client and round.
        seed: of these draws.
    """

    samples_per_second: Numbers
    download: Numbers
    upload: Numbers
    latency: Numbers
    availability: Numbers
    dropout: Numbers
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples_per_second", "download", "upload"):
            _within(name, getattr(self, name), getattr(self, name) > 0, "must be positive")
        _within("latency", self.latency, self.latency >= 0, "must not be negative")
        for name in ("availability", "dropout"):
            values = getattr(self, name)
            _within(name, values, (values >= 0) & (values <= 1), "is a chance, from 0 to 1")
        if not self.jitter >= 0:
            raise ValueError(f"devices.jitter must not be negative, got {self.jitter}")

    def seconds(
        self,
        clients: Numbers,
        round: int,
        samples: Numbers,
        *,
        download_bytes: int,
        upload_bytes: int,
        num_trips: int = 1,
    ) -> Numbers:
        """(m,): from the server's request to the whole update at the server.

        Args:
            clients: (m,) who.
            round: for the jitter.
            samples: (m,) samples that each one computes, epochs counted.
            download_bytes, upload_bytes: to and from each client.
            num_trips: ways down and up that the bytes are divided among.
        """
        training = samples / self.samples_per_second[clients]
        if self.jitter:
            training = training * np.exp(self.jitter * _normal(self._uniform("jitter", clients, round)))
        transfer = download_bytes / self.download[clients] + upload_bytes / self.upload[clients]
        return 2 * num_trips * self.latency[clients] + transfer + training

    def available(self, clients: Numbers, round: int) -> Numbers:
        """(m,) bool: who can start when asked in this round."""
        return self._uniform("available", clients, round) < self.availability[clients]

    def there(self, round: int) -> Numbers:
        """(n,) int64, sorted: all clients that can start when asked in this round."""
        return np.flatnonzero(self.available(np.arange(len(self.availability)), round))

    def gives_up(self, clients: Numbers, round: int) -> Numbers:
        """(m,): after which share of its time a client is lost, in (0, 1); inf for one that reports."""
        lost = self._uniform("dropout", clients, round) < self.dropout[clients]
        return np.where(lost, self._uniform("dropout after", clients, round), np.inf)

    def _uniform(self, purpose: str, clients: Numbers, round: int) -> Numbers:
        return _uniform(self.seed, f"devices: {purpose}", clients, round)


def drawn(
    num_clients: int,
    client_ids: Sequence[str],
    seed: int,
    *,
    samples_per_second: float | Distribution = float("inf"),
    download: float | Distribution = float("inf"),
    upload: float | Distribution = float("inf"),
    latency: float | Distribution = 0.0,
    availability: float | Distribution = 1.0,
    dropout: float | Distribution = 0.0,
    jitter: float = 0.0,
) -> Devices:
    """Devices whose quantities are drawn independently, or are all the same where a number is given.

    Args:
        num_clients: C.
        client_ids: not used: devices drawn do not know names.
        seed: of the run.
        samples_per_second, download, upload, latency, availability, dropout, jitter: see `Devices`.
    """
    clients = np.arange(num_clients)

    def draw(name: str, of: float | Distribution) -> Numbers:
        if isinstance(of, int | float):
            return np.full(num_clients, float(of))
        return of.quantile(_uniform(seed, f"devices: {name}", clients))

    return Devices(
        samples_per_second=draw("samples_per_second", samples_per_second),
        download=draw("download", download),
        upload=draw("upload", upload),
        latency=draw("latency", latency),
        availability=draw("availability", availability),
        dropout=draw("dropout", dropout),
        jitter=jitter,
        seed=seed,
    )


# conf/devices/equal.yaml, with which runs without devices tell the time too.
EQUAL: dict[str, float] = {"samples_per_second": 100.0, "download": 2.5e6, "upload": 6.25e5, "latency": 0.05}

_NEEDED = ("samples_per_second", "download", "upload")
_OPTIONAL = {"latency": 0.0, "availability": 1.0, "dropout": 0.0}


def trace(num_clients: int, client_ids: Sequence[str], seed: int, *, path: str, jitter: float = 0.0) -> Devices:
    """Devices read from a CSV file with a header.

    Columns samples_per_second, download, upload (bytes per second) are needed; latency (seconds, default 0),
    availability (default 1) and dropout (default 0) may be there. With a column `client` each row is the device of the
    client with this name; without it each client gets a row at random.

    Args:
        num_clients: C.
        client_ids: (C,) the clients' names.
        seed: of the run.
        path: the file.
        jitter: see `Devices`.

    Raises:
        ValueError: the file lacks a column, a client, or has something that is not a number.
    """
    if not Path(path).is_file():
        raise ValueError(f"devices.path={path}: there is no such file")
    frame = pd.read_csv(path, dtype={"client": str})
    missing = [name for name in _NEEDED if name not in frame]
    if missing or frame.empty:
        what = f"has no column {', '.join(missing)}" if missing else "has no row"
        raise ValueError(f"devices.path={path}: the file {what}; it needs {', '.join(_NEEDED)}")
    if "client" in frame:
        row_of = {name: i for i, name in enumerate(frame["client"])}
        unknown = [name for name in client_ids if str(name) not in row_of]
        if unknown:
            raise ValueError(
                f"devices.path={path}: {len(unknown)} clients have no row, the first is {unknown[0]!r}; add them, or "
                "leave out the column client, and rows are dealt at random"
            )
        rows = np.array([row_of[str(name)] for name in client_ids])
    else:
        rows = (_uniform(seed, "devices: trace", np.arange(num_clients)) * len(frame)).astype(np.int64)

    def column(name: str) -> Numbers:
        if name not in frame:
            return np.full(num_clients, _OPTIONAL[name])
        values = np.asarray(pd.to_numeric(frame[name], errors="coerce"), float)
        if np.isnan(values).any():
            line = int(np.flatnonzero(np.isnan(values))[0]) + 2
            raise ValueError(f"devices.path={path}: line {line} has no number in column {name}")
        return values[rows]

    return Devices(
        samples_per_second=column("samples_per_second"),
        download=column("download"),
        upload=column("upload"),
        latency=column("latency"),
        availability=column("availability"),
        dropout=column("dropout"),
        jitter=jitter,
        seed=seed,
    )


def work_done(clients: Numbers, local: LocalConfig, seed: int, round: int) -> Numbers:
    """(m,) int64: epochs or steps of each client; of stragglers (`local.straggler_share`) uniform in 1 ... all - 1."""
    whole = local.num_steps or local.num_epochs
    lots = [counter_hash(seed, "straggler", round, clients, k) / 2.0**64 for k in (0, 1)]
    part = 1 + (lots[1] * (whole - 1)).astype(np.int64).clip(max=whole - 2)
    return np.where(lots[0] < local.straggler_share, part, whole)


def samples_trained(sizes: Numbers, local: LocalConfig, work: Numbers | None = None) -> Numbers:
    """(m,): samples that clients of these sizes compute in a round; `work` (m,) is of `work_done`, None: all."""
    if local.num_steps is None:
        return sizes * (local.num_epochs if work is None else work)
    batch = sizes if local.batch_size is None else np.minimum(local.batch_size, sizes)
    batch = np.maximum(batch, 1)
    passes, steps = np.divmod(local.num_steps if work is None else work, np.maximum(-(-sizes // batch), 1))
    return passes * sizes + np.minimum(steps * batch, sizes)


def steps_taken(sizes: Numbers, local: LocalConfig, work: Numbers | None = None) -> Numbers:
    """(m,) int64: local steps of clients of these sizes in a round; `work` as for `samples_trained`."""
    if local.num_steps is not None:
        return np.full_like(sizes, local.num_steps) if work is None else work
    batch = np.maximum(sizes, 1) if local.batch_size is None else local.batch_size
    return -(-sizes // batch) * (local.num_epochs if work is None else work)


def _uniform(seed: int, purpose: str, *counters: Numbers | int) -> Numbers:
    """(n,) in (0, 1), never 0 or 1."""
    return ((counter_hash(seed, purpose, *counters) >> np.uint64(11)).astype(float) + 0.5) * 2.0**-53


def _normal(u: Numbers) -> Numbers:
    return torch.special.ndtri(torch.from_numpy(u)).numpy()


def _within(name: str, values: Numbers, good: Numbers, rule: str) -> None:
    if not good.all():
        raise ValueError(f"devices.{name} {rule}, got {values[~good][0]}")
