"""K clients of an algorithm with hooks of its own: whole vectors, a row for each client.

The serial trainer is K = 1 on the shared model's own memory. What a hook computes with is `Clients`; where gradients
come from, autograd or the batched step, it does not see.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import OnlineAverage
from fedsim.algorithms.base import Algorithm, Clients, Kept, Size, lengths, split
from fedsim.client_state import ClientVectors
from fedsim.config import LocalConfig
from fedsim.train.optimizer import RowOptimizer
from fedsim.train.plan import Plan
from fedsim.train.rows import RowGradient
from fedsim.train.seats import Seated, fill_
from fedsim.uplink import Receiver
from fedsim.vector import FlatModel


def kept_lengths(keeps: dict[str, Kept], model: FlatModel, num_personal: int) -> dict[str, int]:
    """Lengths of the vectors that a client keeps, by name."""
    sizes: dict[str, Size] = {name: kept.size for name, kept in keeps.items()}
    return lengths(sizes, model.num_parameters, model.layout.size, num_personal)


class ClientMemory:
    """What the clients of a trainer keep, for the trainer's whole life.

    Args:
        algorithm: says what is kept.
        model: for sizes, dtype and device.

    Attributes:
        vectors: a row for each client: its vectors, one after another; None where nothing is kept.
        sizes: their lengths, by name.
        personal: (P + Q,) bool, the elements that stay with a client; None without any.
    """

    def __init__(self, algorithm: Algorithm, model: FlatModel) -> None:
        self.personal = None if algorithm.personal is None else algorithm.personal(model)
        num_personal = 0 if self.personal is None else int(self.personal.sum())
        self.sizes = kept_lengths(dict(algorithm.keeps), model, num_personal)
        self.num_personal = num_personal
        size, like = sum(self.sizes.values()), model.vector
        self.vectors = ClientVectors(size, dtype=like.dtype, device=like.device) if self.sizes else None
        self.depth = 0  # of `settled`

    @contextmanager
    def settled(self, clients: np.ndarray | None = None) -> Iterator[None]:
        """What clients have written lasts if this ends well; if it raises, it is as if they had not trained.

        One inside another is a piece of a round: what is written in it lasts when the outermost one ends.

        Args:
            clients: (m,) who train in it; None: whoever writes.
        """
        self.depth += 1
        try:
            yield
        except BaseException:
            if self.vectors is not None:
                self.vectors.rollback(clients)
            raise
        finally:
            self.depth -= 1
        if self.vectors is not None and self.depth == 0:
            self.vectors.commit()


class HookedSlots:
    """K rows of models and of the algorithm's vectors.

    Args:
        model: for the layout.
        record: the algorithm, or its prelude.
        algorithm: the algorithm, which says what is kept and broadcast.
        memory: what clients keep.
        local: the optimizer's settings of this round.
        gradient: of n models.
        rows: (K, P + Q) memory for the models.
        broadcast: (P + Q + ...,) the global model, and the server's vectors behind it.
        plan: the round.
    """

    def __init__(
        self,
        model: FlatModel,
        record: Algorithm,
        algorithm: Algorithm,
        memory: ClientMemory,
        local: LocalConfig,
        gradient: RowGradient,
        *,
        rows: Tensor,
        broadcast: Tensor,
        plan: Plan,
    ) -> None:
        self.record, self.memory, self.local, self.plan = record, memory, local, plan
        self.gradient, self.rows, self.keeps = gradient, rows, dict(algorithm.keeps)
        self.size, self.width, num_slots = model.num_parameters, model.layout.size, len(rows)
        self.broadcast = broadcast[: self.width]
        sizes = (self.size, self.width, memory.num_personal)
        self.server = split(broadcast[self.width :], lengths(algorithm.broadcast, *sizes))
        self.sums = lengths(record.sums, *sizes)
        self.kept = {name: rows.new_empty((num_slots, n)) for name, n in memory.sizes.items()}
        works = lengths(record.works, *sizes)
        self.vectors = {**self.kept, **{name: rows.new_empty((num_slots, n)) for name, n in works.items()}}
        self.works = list(works)
        self.optimizers: dict[tuple[str, str], RowOptimizer] = {}
        self.scratch: Tensor | None = None
        column = rows.new_empty((num_slots, 1))
        self.samples, self.steps, self.taken = column.clone(), column.clone(), column.clone()
        self.all_samples, self.all_steps = rows.new_tensor(np.stack([plan.weights, plan.steps]))[..., None]
        self.sitting = np.full(num_slots, -1)

    def begin(self, arriving: Seated) -> None:
        """New clients start in their slots."""
        slots, clients = arriving.place, self.plan.clients[arriving.who]
        self.sitting[arriving.slots] = arriving.who
        self.rows[slots] = self.broadcast
        self.samples[slots] = self.all_samples[arriving.who_there]
        self.steps[slots] = self.all_steps[arriving.who_there]
        fill_(self.taken, slots, 0.0)
        for name in self.works:
            fill_(self.vectors[name], slots, 0.0)
        for optimizer in self.optimizers.values():
            optimizer.begin(slots)
        personal = self.memory.personal
        if self.memory.vectors is not None:
            known = torch.from_numpy(self.memory.vectors.known(clients)).to(self.rows.device)[:, None]
            found = split(self.memory.vectors.read(clients), self.memory.sizes)
            for name, kept in self.keeps.items():
                if kept.start == "model":
                    first = {"parameters": self.broadcast[: self.size], "model": self.broadcast}.get(str(kept.size))
                    first = self.broadcast[personal] if first is None else first
                    found[name] = torch.where(known, found[name], first)
                elif kept.start:
                    found[name] = torch.where(known, found[name], kept.start)
                self.kept[name][slots] = found[name]
            if personal is not None:
                whole = self.rows[slots]
                whole[:, personal] = found["personal"]
                self.rows[slots] = whole
        if self.record.begin is not None:
            view = self._view(slots, clients)
            self.record.begin(view)
            if not isinstance(slots, slice):  # the view was a copy
                self.rows[slots] = torch.cat([view.model, view.buffers], dim=1)
                for name, vector in view.vectors.items():
                    self.vectors[name][slots] = vector

    def computed(self, n: int) -> int:
        """How many slots are computed when the first n are busy."""
        return n

    def _view(self, slots: Tensor | slice, clients: np.ndarray, counts: Tensor | None = None) -> Clients:
        rows = self.rows[slots]
        return Clients(
            model=rows[:, : self.size],
            buffers=rows[:, self.size :],
            start=self.broadcast[: self.size],
            start_buffers=self.broadcast[self.size :],
            server=self.server,
            vectors={name: vector[slots] for name, vector in self.vectors.items()},
            personal=self.memory.personal,
            clients=clients,
            samples=self.samples[slots],
            steps=self.steps[slots],
            taken=self.taken[slots],
            counts=self.samples[slots] if counts is None else counts,
            local=self.local,
            compute=self._refuse,
            move=self._refuse,  # pyright: ignore[reportArgumentType]
        )

    def _refuse(self, *_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError(f"algorithm={self.record.name}: gradients and steps belong in `step`")

    def advance(self, n: int, x: Tensor, y: Tensor, counts: Tensor, counts_there: Tensor | None = None) -> Tensor:
        """One step of the first n slots on minibatches x (n, B, ...), y (n, B, ...), of which counts (n,) count.

        Args:
            n, x, y: the minibatches.
            counts: on the device, or on the host for `SerialGradient`.
            counts_there: (n,) the same on the device; None: `counts` is there.

        Returns:
            (n,) sums of the losses of the step's first gradient.
        """
        clients = self.plan.clients[self.sitting[:n]]
        column = (counts if counts_there is None else counts_there).to(self.rows.dtype)[:, None]
        view = self._view(slice(0, n), clients, column)
        seen: list[Tensor] = []

        def compute(at: Tensor | str | None, part: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
            minibatch = (x, y, counts) if part is None else _part(x, y, counts, *part)
            source = self.rows[:n] if at is None else view.vectors[at] if isinstance(at, str) else at
            models = source if at is None else self._whole(source, n)
            losses, gradient, buffers = self.gradient(models, *minibatch)
            if (at is None or isinstance(at, str)) and source.shape[-1] == self.width:
                statistics = source[:, self.size :]
                if statistics.data_ptr() != buffers.data_ptr():  # the shared module writes its own
                    statistics.copy_(buffers)
            if not seen:
                # a part of the minibatch stands for all of it in the reported loss
                seen.append(losses if part is None else losses * (counts / minibatch[2]).to(losses.device))
            number = column if part is None else minibatch[2].to(losses.device)[:, None]
            return losses.view(-1, 1) / number, gradient

        def move(direction: Tensor, of: str, only: Tensor | None, optimizer: str, learning_rate: float | None) -> None:
            vector = self.rows if of == "model" else self.vectors[of]
            key = (of, optimizer)
            if key not in self.optimizers:
                self.optimizers[key] = RowOptimizer(self.local, vector[:, : self.size])
            rate = self.local.learning_rate if learning_rate is None else learning_rate
            self.optimizers[key].step(vector[:n, : self.size], direction, rate, only)

        view.compute, view.move = compute, move
        with torch.no_grad():
            if self.record.step is None:
                view.descend(view.gradient())
            else:
                self.record.step(view)
            self.taken[:n] += 1.0
        # they know the view, and so the step's tensors would wait for the garbage collector
        view.compute = view.move = self._refuse  # pyright: ignore[reportAttributeAccessIssue]
        if not seen:
            raise ValueError(f"algorithm={self.record.name}: a step must compute a gradient or a loss")
        return seen[0]

    def _whole(self, at: Tensor, n: int) -> Tensor:
        """Parameters (n, P) or (P,), or whole vectors (n, P + Q), as models laid out as `rows` are.

        One layout for all, because the batched gradient is traced for it.
        """
        if at.dim() == 2 and at.shape[1] == self.width and at.stride() == self.rows.stride():
            return at
        if self.scratch is None:
            self.scratch = torch.empty_like(self.rows)
        models = self.scratch[:n]
        models[:, : at.shape[-1]] = at
        if at.shape[-1] < self.width:
            models[:, self.size :] = self.rows[:n, self.size :]
        return models

    def own(self) -> Tensor:
        """(P + Q,) the model of the client in the only slot, when it has taken its steps: valid until the next."""
        if self.record.finish is not None:
            view = self._view(slice(0, 1), self.plan.clients[self.sitting])
            self.record.finish(view, self.rows - self.broadcast)
        return self.rows[0]

    def fold(self, leaving: Seated, average: OnlineAverage | Receiver) -> Tensor:
        """Stream the updates of n clients into the average; returns their (n,) squared norms."""
        record, memory = self.record, self.memory
        plain = record.finish is None and memory.vectors is None and not self.sums
        if plain and len(self.rows) == 1 and isinstance(average, OnlineAverage):
            return average.add(self.rows[0], self.broadcast, float(leaving.weights[0])).view(1)
        index, clients = leaving.slots_there, self.plan.clients[leaving.who]
        update = self.rows[index] - self.broadcast
        view = self._view(index, clients)
        found = {} if record.finish is None else record.finish(view, update)
        if found.keys() != self.sums.keys():
            raise ValueError(f"algorithm={record.name}: finish returned {sorted(found)}, sums has {sorted(self.sums)}")
        if memory.personal is not None:
            whole = torch.cat([view.model, view.buffers], dim=1)
            view.vectors["personal"].copy_(whole[:, memory.personal])
            update[:, memory.personal] = 0.0
        if memory.vectors is not None:
            memory.vectors.write(clients, torch.cat([view.vectors[name] for name in memory.sizes], dim=1))
        sent = (update, *(found[name] for name in self.sums))
        if not isinstance(average, OnlineAverage):
            return average.add(clients.tolist(), torch.cat(sent, dim=1), leaving.weights.tolist())
        start, squares = 0, update.new_zeros(len(index))
        for vector in sent:
            average.add_rows(vector, leaving.weights_there, start)
            start += vector.shape[1]
            squares += torch.linalg.vector_norm(vector, dim=1).square()
        average.add_weight(leaving.weights.tolist())
        return squares


def _part(x: Tensor, y: Tensor, counts: Tensor, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The samples part, part + parts ... of each minibatch; its part 0 where there is none."""
    first, first_counts = (x[:, ::parts], y[:, ::parts]), (counts + parts - 1) // parts
    own, own_counts = (x[:, part::parts], y[:, part::parts]), (counts - part + parts - 1) // parts
    width = own[0].shape[1]
    if part == 0 or width == 0:
        return first[0].contiguous(), first[1].contiguous(), first_counts
    none = own_counts <= 0
    filled = [
        torch.where(none.to(o.device).view(-1, *[1] * (o.dim() - 1)), f[:, :width], o)
        for o, f in zip(own, first, strict=True)
    ]
    return filled[0], filled[1], torch.where(none, first_counts.clamp(max=width), own_counts)
