"""VectorizedTrainer: K clients side by side in one batched computation, slots refilled as clients finish.

Nothing is padded to the longest client: shapes are fixed by K and B, a slot whose client has finished takes the next
client of the plan, and at the end of a round only the busy slots are computed. A finished client stays in its slot
until the slot is needed, so that several are folded into the average at once.
"""

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import OnlineAverage, PartialAverage
from fedsim.algorithms.base import Algorithm, client_weights, update_size
from fedsim.client_state import ClientVectors
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.resident import ResidentSplit
from fedsim.denormals import flushed_denormals
from fedsim.rng import forked_generators, torch_stream
from fedsim.train.batched import factorable, first_convolutions
from fedsim.train.gradient import SlotGradient
from fedsim.train.graphs import GraphedSlots, find_capture
from fedsim.train.hooked import ClientMemory, HookedSlots
from fedsim.train.outcome import summarise
from fedsim.train.plan import Plan
from fedsim.train.precision import check, products
from fedsim.train.rows import BatchedGradient
from fedsim.train.seats import Seats
from fedsim.train.slots import SlotState
from fedsim.train.step import is_stochastic
from fedsim.uplink import Receiver, Uplink
from fedsim.vector import FlatModel

# Bytes of samples gathered at once: on a CPU few enough to stay in its cache until they are used.
_GATHER = {"cpu": 1 << 19, "cuda": 1 << 26}
# Smaller layers gain nothing from being factored.
_MIN_FACTORED = 1 << 17


class VectorizedTrainer:
    """Trains `num_slots` clients of a plan at a time.

    Args:
        dataset: the clients' samples.
        model: the model; its device is where training runs.
        algorithm: what its clients do.
        local: the optimizer's settings.
        seed: the run's seed, for dropout, which is reproducible for a fixed number of slots.
        num_slots: K.
        factor: keep large linear layers as factors (`FactoredLinear`) where that takes less memory than a weight
            for each slot; False never does.
        uplink: where updates go, whole, so that nothing is factored; None: into their mean.
        sum_dtype: of the mean's running sum.
        precision: of gradients (`fedsim.train.precision`); with bf16 nothing is factored.
        cuda_graphs: launch each step as a CUDA graph (`fedsim.train.graphs`), for which nothing is factored; None:
            where that works.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        model: FlatModel,
        algorithm: Algorithm,
        local: LocalConfig,
        *,
        seed: int = 0,
        num_slots: int = 32,
        factor: bool = True,
        uplink: Uplink | None = None,
        sum_dtype: torch.dtype = torch.float64,
        precision: str = "float32",
        cuda_graphs: bool | None = None,
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"trainer.num_slots must be at least 1, got {num_slots}")
        check(precision, model.device)
        self.dataset, self.model, self.seed, self.uplink, self.sum_dtype = dataset, model, seed, uplink, sum_dtype
        self.algorithm, self.local, self.num_slots = algorithm, local, num_slots
        self.data = ResidentSplit(dataset, dataset.train, model.device)
        self.stochastic, self.precision = is_stochastic(model, dataset), precision
        sample = dataset.preprocess(dataset.train.inputs[:1]).to(model.device)
        self.memory = ClientMemory(algorithm, model)
        plain = not algorithm.hooked and local.optimizer == "sgd"
        self.capture = find_capture(cuda_graphs, model.device, plain=plain, stochastic=self.stochastic)
        self.graphed: GraphedSlots | None = None
        whole_vectors = not plain or uplink is not None or precision == "bf16" or self.capture is not None
        self.factorable = factorable(model.module, sample, _MIN_FACTORED) if factor and not whole_vectors else {}
        self.first = first_convolutions(model.module, sample) if precision == "float32" else set[str]()
        self.expected_history = 0
        self.functions: dict[frozenset[str], SlotGradient] = {}

    def _function(self, factored: dict[str, tuple[int, int]]) -> SlotGradient:
        """The batched gradient with these layers factored; one trace serves every size."""
        key = frozenset(factored)
        if key not in self.functions:
            self.functions[key] = SlotGradient(
                self.model.module,
                set(factored),
                self.first,
                stochastic=self.stochastic,
                precision=self.precision,
                objective=self.dataset.objective,
            )
        return self.functions[key]

    @property
    def clients(self) -> ClientVectors | None:
        """What the clients keep; None where the algorithm keeps nothing."""
        return self.memory.vectors

    def _record(self, plan: Plan) -> Algorithm:
        record = self.algorithm.prelude if plan.prelude else self.algorithm
        assert record is not None, "this algorithm has no prelude"
        return record

    def _factored(self, history: int) -> dict[str, tuple[int, int]]:
        """The layers to factor when the longest client sees `history` samples, fillings included."""
        history = max(history, self.expected_history)
        return {
            n: (out, into) for n, (out, into) in self.factorable.items() if history * (out + into) * 2 <= out * into
        }

    def history_bytes(self, steps: int, batch: int) -> int:
        """The factors of one slot, for `steps` minibatches of `batch` samples, the first left out."""
        widths = sum(out + into for out, into in self._factored(steps * batch).values())
        return (steps - 1) * batch * widths * self.model.vector.element_size()

    def close(self) -> None:
        """Nothing was started."""

    @flushed_denormals()
    def train(self, plan: Plan, broadcast: Tensor, scale: float) -> PartialAverage:
        """Train every client of the plan from `broadcast` (P + Q + ...,) and average the updates.

        Raises:
            ValueError: a client's loss or update is not finite, or the model cannot be batched.
        """
        size = update_size(self._record(plan), self.model.layout)
        if self.uplink is None:
            average = OnlineAverage(size, scale=scale, device=broadcast.device, dtype=self.sum_dtype)
        else:
            average = self.uplink.open(plan.round, plan.clients, scale)
        try:
            with self.memory.settled(plan.clients), products(self.precision, broadcast.device):
                return average.result(self.run(plan, broadcast, average))
        except RuntimeError:  # out of memory, it may be: fewer slots must not find this many still there
            self.graphed = None
            raise

    def run(self, plan: Plan, broadcast: Tensor, average: OnlineAverage | Receiver) -> dict[str, float]:
        """Train every client of the plan and add the updates to `average`; returns the metrics."""
        with forked_generators(self.stochastic) as reseed:
            if self.stochastic:
                reseed(torch_stream(self.seed, "dropout", plan.round).initial_seed())
            return self._run(plan, broadcast, average)

    def _run(self, plan: Plan, broadcast: Tensor, average: OnlineAverage | Receiver) -> dict[str, float]:
        num_steps, num_slots, batch = plan.rows.shape
        longest = int(plan.steps.max())
        state = self._slots(plan, self._factored(longest * batch), broadcast)
        steps = state if self.graphed is None or state is not self.graphed.state else self.graphed
        num_busy = (plan.counts > 0).sum(1)
        weights = client_weights(self.algorithm, self.model.layout, plan.clients, plan.weights, broadcast)
        order = plan.start.argsort(kind="stable")
        arrivals, begins = Seats(plan, order, weights, broadcast.device), plan.start[order]
        ends = plan.start + plan.steps
        order = ends.argsort(kind="stable")
        departures, ends = Seats(plan, order, weights, broadcast.device), ends[order]
        rows = self.data.rows(plan.rows)
        counts = torch.from_numpy(plan.counts).to(broadcast.device)
        loss_sums = broadcast.new_zeros(plan.counts.shape)
        # of those who have been folded, in the order in which they finish; in one place, as in the serial trainer
        squares = broadcast.new_empty(len(ends))
        folded = finished = arrived = 0

        def fold() -> None:
            nonlocal folded
            leaving = departures.some(folded, finished)
            if isinstance(state, HookedSlots) or isinstance(average, OnlineAverage):
                squares[folded:finished] = state.fold(leaving, average)  # pyright: ignore[reportArgumentType]
            else:
                clients = plan.clients[leaving.who].tolist()
                squares[folded:finished] = average.add(clients, state.updates(leaving), leaving.weights.tolist())
            folded = finished

        block = max(1, self.data.samples_at_once(_GATHER[broadcast.device.type]) // (num_slots * batch))
        blocks = self.data.gather_all(
            rows[t : t + block, : int(num_busy[t])].reshape(-1) for t in range(0, num_steps, block)
        )
        first, x, y = 0, rows, rows
        num_arrived = begins.searchsorted(np.arange(num_steps), side="right").tolist()
        num_finished = ends.searchsorted(np.arange(num_steps), side="right").tolist()
        for t in range(num_steps):
            finished = num_finished[t]
            if num_arrived[t] > arrived:
                if finished > folded:
                    fold()
                state.begin(arrivals.some(arrived, num_arrived[t]))
                arrived = num_arrived[t]
            if t % block == 0:
                first = t
                width = int(num_busy[t])
                x = y = rows  # the last block goes before the next one comes
                x, y = (v.view(-1, width, batch, *v.shape[1:]) for v in next(blocks))
            n = int(num_busy[t])
            now = t - first
            if finished > folded and steps.computed(n) > n:
                fold()
            loss_sums[t, :n] = steps.advance(n, x[now, :n], y[now, :n], counts[t, :n])
        finished = len(ends)
        fold()
        squared_norms = torch.empty(len(ends), dtype=broadcast.dtype)
        squared_norms[torch.from_numpy(departures.who)] = squares.cpu()
        return summarise(plan, self.dataset.client_ids, _per_client(loss_sums.cpu(), plan), squared_norms)

    def _slots(self, plan: Plan, factored: dict[str, tuple[int, int]], broadcast: Tensor) -> SlotState | HookedSlots:
        """The slots of a round: with factors for plain SGD, of whole vectors for an algorithm with hooks."""
        record, local = self._record(plan), self.local.at(plan.round)
        _, num_slots, batch = plan.rows.shape
        if record.hooked or local.optimizer != "sgd":
            gradient = BatchedGradient(self.model, self._function({}))
            rows = broadcast.new_empty((num_slots, self.model.layout.size))
            return HookedSlots(
                self.model,
                record,
                self.algorithm,
                self.memory,
                local,
                gradient,
                rows=rows,
                broadcast=broadcast,
                plan=plan,
            )
        start = broadcast[: self.model.layout.size]
        if self.graphed is not None and len(self.graphed.state.rows) >= num_slots:
            self.graphed.restart(start, local)
            return self.graphed.state
        self.graphed = None
        state = SlotState(
            self.model,
            factored,
            self._function(factored),
            num_slots=num_slots,
            num_steps=int(plan.steps.max()),
            batch=batch,
            local=local,
            broadcast=start,
        )
        if self.capture is not None:
            self.graphed = GraphedSlots(state, self.capture)
        return state


def _per_client(loss_sums: Tensor, plan: Plan) -> Tensor:
    """(T, K) losses of steps to (m,) losses of clients."""
    totals = torch.zeros((len(loss_sums) + 1, loss_sums.shape[1]), dtype=torch.float64)
    torch.cumsum(loss_sums.double(), 0, out=totals[1:])
    slot, start, stop = (torch.from_numpy(v) for v in (plan.slot, plan.start, plan.start + plan.steps))
    return totals[stop, slot] - totals[start, slot]
