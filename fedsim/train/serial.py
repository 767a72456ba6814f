"""SerialTrainer: clients one after another on one shared model, each update streamed into the running average.

Memory, whatever the number of clients: the global vector, the local one, its gradient, the running sum (in float64
twice as large), and the activations of one minibatch. There is no DataLoader, no copy of the model per client, and
nothing waits for the device before the round has ended.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import OnlineAverage, PartialAverage
from fedsim.algorithms.base import Algorithm, client_weights, update_size
from fedsim.client_state import ClientVectors
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.resident import ResidentSplit, Samples
from fedsim.denormals import flushed_denormals
from fedsim.rng import forked_generators, torch_stream
from fedsim.train.batched import factorable
from fedsim.train.graphs import GraphedStep, find_capture
from fedsim.train.hooked import ClientMemory, HookedSlots
from fedsim.train.outcome import summarise
from fedsim.train.plan import Plan
from fedsim.train.precision import check, products
from fedsim.train.rows import RowGradient, SerialGradient
from fedsim.train.seats import Seats
from fedsim.train.step import SerialStep, is_stochastic
from fedsim.uplink import Uplink
from fedsim.vector import FlatModel

# Bytes of samples gathered at once: on a CPU few enough to stay in its cache until they are used.
_GATHER = {"cpu": 1 << 20, "cuda": 1 << 26}
# Smaller layers gain nothing from a gradient that is not written down.
_MIN_PRODUCT = 1 << 18


class SerialTrainer:
    """Trains the clients of a plan one after another.

    Args:
        dataset: the clients' samples.
        model: the shared model; its device is where training runs. Its vector is overwritten.
        algorithm: what its clients do.
        local: the optimizer's settings.
        seed: the run's seed, for dropout.
        uplink: where updates go; None: into their mean.
        sum_dtype: of the mean's running sum.
        precision: of gradients (`fedsim.train.precision`).
        cuda_graphs: launch each step as a CUDA graph (`fedsim.train.graphs`); None: where that works.
        data: where minibatches come from; None: the training samples.
        gradient: of one model on what `data` gives; None: plain autograd.
    """

    num_slots = 1
    expected_history = 0

    def __init__(
        self,
        dataset: FederatedDataset,
        model: FlatModel,
        algorithm: Algorithm,
        local: LocalConfig,
        *,
        seed: int = 0,
        uplink: Uplink | None = None,
        sum_dtype: torch.dtype = torch.float64,
        precision: str = "float32",
        cuda_graphs: bool | None = None,
        data: Samples | None = None,
        gradient: RowGradient | None = None,
    ) -> None:
        self.dataset, self.model, self.seed, self.uplink, self.sum_dtype = dataset, model, seed, uplink, sum_dtype
        check(precision, model.device)
        self.data = data or ResidentSplit(dataset, dataset.train, model.device)
        self.gradient = gradient
        self.algorithm, self.local, self.memory = algorithm, local, ClientMemory(algorithm, model)
        self.precision, self.stochastic = precision, is_stochastic(model, dataset)
        plain = not algorithm.hooked and local.optimizer == "sgd"
        capture = find_capture(cuda_graphs, model.device, plain=plain, stochastic=self.stochastic)
        products = ()
        if plain and model.device.type == "cpu" and precision == "float32":
            products = factorable(model.module, dataset.preprocess(dataset.train.inputs[:1]), _MIN_PRODUCT)
        step = SerialStep(model, local, precision, products, dataset.objective)
        self.plain = step if capture is None else GraphedStep(step, capture)

    @property
    def clients(self) -> ClientVectors | None:
        """What the clients keep; None where the algorithm keeps nothing."""
        return self.memory.vectors

    def history_bytes(self, steps: int, batch: int) -> int:
        """Nothing is remembered."""
        return 0

    def close(self) -> None:
        """Nothing was started."""

    @flushed_denormals()
    def train(self, plan: Plan, broadcast: Tensor, scale: float) -> PartialAverage:
        """Train every client of the plan from `broadcast` (P + Q + ...,) and average the updates.

        Raises:
            ValueError: a client's loss or update is not finite.
        """
        with self.memory.settled(plan.clients), products(self.precision, broadcast.device):
            return self._train(plan, broadcast, scale)

    def _train(self, plan: Plan, broadcast: Tensor, scale: float) -> PartialAverage:
        assert plan.num_slots == 1
        self.model.own()
        self.model.module.train()
        record = self.algorithm.prelude if plan.prelude else self.algorithm
        assert record is not None, "this algorithm has no prelude"
        local = self.local.at(plan.round)
        layout = self.model.layout
        if self.uplink is None:
            size = update_size(record, layout)
            average = OnlineAverage(size, scale=scale, device=broadcast.device, dtype=self.sum_dtype)
        else:
            average = self.uplink.open(plan.round, plan.clients, scale)
        weights = client_weights(self.algorithm, layout, plan.clients, plan.weights, broadcast)
        seats = Seats(plan, np.arange(len(plan.clients)), weights, broadcast.device)
        slots, start = None, broadcast[: layout.size]
        if record.hooked or local.optimizer != "sgd" or self.gradient is not None:
            gradient = self.gradient or SerialGradient(self.model, self.dataset.objective, self.precision)
            rows = self.model.vector.view(1, -1)
            slots = HookedSlots(
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
        else:
            self.plain.use(local)
        # one place for every client's figures: small tensors kept until the end would pin the heap's pages
        loss_sums, squared_norms = broadcast.new_empty((2, len(plan.clients)))
        rows = self.data.rows(plan.rows[:, 0])
        batch = rows.shape[1]
        counts = plan.counts[:, 0].tolist()
        counts_on_device = torch.from_numpy(plan.counts[:, 0]).to(broadcast.device, broadcast.dtype)
        block = max(1, self.data.samples_at_once(_GATHER[broadcast.device.type]) // batch)
        spans = [
            [(begin, min(begin + block, end)) for begin in range(first, end, block)]
            for first, end in zip(plan.start.tolist(), (plan.start + plan.steps).tolist(), strict=True)
        ]
        blocks = self.data.gather_all(rows[begin:stop].reshape(-1) for begin, stop in itertools.chain(*spans))
        with forked_generators(self.stochastic) as reseed:
            for i, client in enumerate(plan.clients.tolist()):
                if self.stochastic:
                    reseed(torch_stream(self.seed, "dropout", plan.round, client).initial_seed())
                if slots is None:
                    self.model.load(start)
                    self.plain.begin()
                else:
                    slots.begin(seats.some(i, i + 1))
                first, end = int(plan.start[i]), int(plan.start[i] + plan.steps[i])
                losses = []
                for begin, stop in spans[i]:
                    inputs, targets = next(blocks)
                    for t, at in zip(range(begin, stop), range(0, len(inputs), batch), strict=True):
                        x, y = inputs[at : at + counts[t]], targets[at : at + counts[t]]
                        if slots is None:
                            losses.append(self.plain(x, y))
                        else:
                            n, there = torch.tensor([counts[t]]), counts_on_device[t : t + 1]
                            losses.append(slots.advance(1, x[None], y[None], n, there)[0] / counts[t])
                # not a dot product, whose last bit may depend on where in memory its arguments lie
                loss_sums[i] = (torch.stack(losses) * counts_on_device[first:end]).sum(dtype=torch.float64)
                if slots is not None:
                    squared_norms[i] = slots.fold(seats.some(i, i + 1), average)[0]
                elif isinstance(average, OnlineAverage):
                    squared_norms[i] = average.add(self.model.vector, start, float(weights[i]))
                else:
                    squared_norms[i] = average.add([client], (self.model.vector - start)[None], [float(weights[i])])[0]
        return average.result(summarise(plan, self.dataset.client_ids, loss_sums, squared_norms))
