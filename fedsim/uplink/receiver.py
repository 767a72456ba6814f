"""Receiver: takes the updates of one round, in the place of an average."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import ClientRows, OnlineAverage, PartialAverage
from fedsim.attacks import Attack
from fedsim.robust.base import Aggregator
from fedsim.robust.store import UpdateStore
from fedsim.transforms.base import Sending
from fedsim.uplink.pipeline import Pipeline

# names of `PartialAverage.rows`: updates for a rule, and those of attackers who wait for each other
UPDATES, PLOTTED = "updates", "plotted"
# mean = total * scale / (2^44 weight) (`PartialAverage`): with this scale and weight 1 a total is its own mean
_UNIT_SCALE = float(1 << 44)


class Receiver:
    """What a trainer hands its finished clients to.

    Args:
        pipeline: the transforms.
        aggregator: how updates become one.
        attack: None where all clients are honest.
        attackers: client numbers.
        round: from 1.
        clients: (m,) everybody who will send an update.
        size: elements of an update that are sent.
        sent: (size,) int64, which ones; None: all.
        like: for the dtype and the device of updates.
        scale: grid of the average.
        equal_weights: whether every update counts the same.
        piece: these are not all clients of the round: what needs all of them is not done but goes on, as
            `PartialAverage.rows`, to the receiver of the whole round, which takes it with `merge`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        aggregator: Aggregator,
        attack: Attack | None,
        attackers: set[int],
        *,
        round: int,
        clients: np.ndarray,
        size: int,
        sent: Tensor | None,
        like: Tensor,
        scale: float,
        equal_weights: bool,
        piece: bool = False,
    ) -> None:
        self.pipeline, self.aggregator, self.attack, self.attackers = pipeline, aggregator, attack, attackers
        self.round, self.num_clients, self.equal_weights = round, len(clients), equal_weights
        self.size, self.sent, self.like, self.piece = size, sent, like, piece
        self.forwarded: dict[str, list[ClientRows]] = {}
        self.scale = scale
        self.sums: dict[str, Tensor] = {}
        self.average: OnlineAverage | None = None
        self.kept: UpdateStore | None = None
        if aggregator.rule is None:
            self.average = OnlineAverage(size, scale=scale, device=like.device, dtype=aggregator.dtype)
        elif not piece:
            aggregator.require(self.num_clients)
            self.kept = self._store(clients.tolist())
        plotting = [c for c in clients.tolist() if c in attackers] if attack is not None and attack.collude else []
        self.plots = bool(plotting)
        self.plot = self._store(plotting) if plotting and not piece else None

    def _store(self, clients: list[int]) -> UpdateStore:
        return UpdateStore(
            clients,
            self.size,
            dtype=self.like.dtype,
            device=self.like.device,
            memory_bytes=self.aggregator.memory_mib * 2**20,
            directory=self.aggregator.spill_dir,
        )

    def add(self, clients: list[int], rows: Tensor, weights: list[float]) -> Tensor:
        """Take the finished updates (F, P + Q) of these clients; the rows are the receiver's to overwrite.

        Returns:
            (F,) squared norms of the updates as they were given.
        """
        squared_norms = torch.linalg.vector_norm(rows, dim=1).square()
        rows = rows if self.sent is None else rows[:, self.sent]
        bad = [i for i, c in enumerate(clients) if c in self.attackers]
        if bad and self.plots:  # they wait for each other
            self._keep(PLOTTED, self.plot, [clients[i] for i in bad], rows[bad], [weights[i] for i in bad])
            good = [i for i in range(len(clients)) if i not in bad]
            clients, rows, weights = [clients[i] for i in good], rows[good], [weights[i] for i in good]
        elif bad and self.attack is not None and self.attack.corrupt is not None:
            sending = Sending(
                seed=self.pipeline.seed,
                round=self.round,
                purpose=f"attack.{self.attack.name}",
                clients=[clients[i] for i in bad],
                state={},
                memory=None,
            )
            rows[bad] = self.attack.corrupt(rows[bad], sending)
        if clients:
            self._send(clients, rows, weights)
        return squared_norms

    def _send(self, clients: list[int], rows: Tensor, weights: list[float]) -> None:
        """Through the transforms, and on to the mean or the store."""
        rows = self.pipeline.apply(rows, clients, self.round, self.sums)
        if self.equal_weights:
            weights = [1.0] * len(weights)
        if self.average is not None:
            self.average.add_rows(rows, torch.tensor(weights, dtype=torch.float64, device=rows.device), 0)
            self.average.add_weight(weights)
        else:
            self._keep(UPDATES, self.kept, clients, rows, weights)

    def _keep(
        self, name: str, store: UpdateStore | None, clients: list[int], rows: Tensor, weights: list[float]
    ) -> None:
        if store is None:
            found = ClientRows(clients=np.array(clients), rows=rows.cpu(), weights=np.array(weights, np.float64))
            self.forwarded.setdefault(name, []).append(found)
        else:
            store.put(clients, rows, weights)

    def merge(self, partial: PartialAverage) -> None:
        """Take a piece of the round."""
        if self.average is not None:
            self.average.merge(partial)
        for name, store in ((UPDATES, self.kept), (PLOTTED, self.plot)):
            if name in partial.rows:
                found = partial.rows[name]
                assert store is not None
                assert found.weights is not None
                store.put(found.clients.tolist(), found.rows, found.weights.tolist())

    def result(self, metrics: dict[str, float]) -> PartialAverage:
        """All clients have finished; `metrics` are sums over them, to which the transforms' are added."""
        if self.plot is not None and self.attack is not None and self.attack.collude is not None:
            message = self.attack.collude(self.plot, self.num_clients).to(self.like.dtype)
            for client, weight in zip(self.plot.clients, self.plot.weights.tolist(), strict=True):
                self._send([client], message.clone()[None], [weight])
        metrics = metrics | {name: metrics.get(name, 0.0) + float(amount) for name, amount in self.sums.items()}
        if self.piece:
            rows = {name: ClientRows.join(found) for name, found in self.forwarded.items()}
            average = self.average
            if average is None:  # a rule has no sum, but the weights of its updates are known
                average = OnlineAverage(0, scale=self.scale)
                average.add_weight([] if UPDATES not in rows else np.asarray(rows[UPDATES].weights).tolist())
            return replace(average.result(metrics), rows=rows)
        if self.kept is None or self.aggregator.rule is None:
            assert self.average is not None
            return self.average.result(metrics)
        total = self.aggregator.rule(self.kept)
        return PartialAverage(total=total, weight=1.0, scale=_UNIT_SCALE, metrics=metrics)
