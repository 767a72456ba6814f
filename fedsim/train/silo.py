"""SiloTrainer: a client's minibatches computed by several processes, the rest of its training by the first of them.

A silo is a client (a hospital, a company) with several devices of its own. Its first process trains as `SerialTrainer`
does and asks the others for nothing but gradients: it sends the vector and the numbers of a minibatch's samples, every
process computes the gradient of the part that falls to it on data that it has read itself, and the parts are added in
one all-reduce, each weighted by its samples. The sum over the samples is that of one process, whatever the number of
processes and however uneven the last minibatch, so the result is the same up to rounding.

That all-reduce of one flat vector stands where DistributedDataParallel has its buckets. The arithmetic is the same:
tests/transport/test_silo.py holds a silo to a loop of DDP. But the gradient lies in one tensor already, so buckets
would be a second copy of it, and DDP's replicas would each keep momenta and what an algorithm keeps of a client, and
could part. Here these lie in one place, so that every algorithm, optimizer and transform trains in a silo as it does
elsewhere; a step costs one broadcast more.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import PartialAverage
from fedsim.algorithms.base import Algorithm
from fedsim.client_state import ClientVectors
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.resident import ResidentSplit
from fedsim.train.group import Group, SiloBroken
from fedsim.train.hooked import ClientMemory
from fedsim.train.plan import Plan
from fedsim.train.rows import SerialGradient
from fedsim.train.serial import SerialTrainer
from fedsim.train.step import is_stochastic
from fedsim.uplink import Uplink
from fedsim.vector import FlatModel

_END, _GRADIENT = 0, 1
_HEADER = 3  # what to do, samples of the minibatch, the draw that seeds dropout
_FOREVER = timedelta(days=3650)
_FAREWELL = timedelta(seconds=3)  # for the others to hear that it is over: they wait for nothing else
_MAX_DRAW = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Silo:
    """Asks for a trainer of several processes; whoever builds the run starts them or finds them.

    Attributes:
        num_processes: how many. None: as many as torchrun has started; without torchrun one for each GPU of this
            machine, or 2 on its processor.
        devices: of each process, for example [cuda:0, cuda:1]; None: as `device` says, "auto" being the GPUs in turn.
        timeout: seconds after which a process that does not answer ends the silo; more than a step takes.
    """

    num_processes: int | None = None
    devices: Sequence[str] | None = None
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"trainer.num_processes must be at least 1, got {self.num_processes}")
        if not self.timeout > 0:
            raise ValueError(f"trainer.timeout must be positive, got {self.timeout}")

    def count(self, started: int | None) -> int:
        """How many processes there are, of which `started` have been started already (None: nobody says).

        Raises:
            ValueError: that is not what the settings say.
        """
        count = started or self.num_processes or max(2, torch.cuda.device_count())
        if self.num_processes not in (None, count):
            raise ValueError(
                f"trainer.num_processes={self.num_processes}, but torchrun has started {count}: leave it out"
            )
        if self.devices is not None and len(self.devices) != count:
            raise ValueError(f"trainer.devices names {len(self.devices)} devices for {count} processes: give each one")
        return count


class SiloTrainer:
    """The first process of a silo: a `SerialTrainer` whose gradients come from all processes.

    Args:
        dataset, model, algorithm, local, seed, uplink, sum_dtype: as for `SerialTrainer`.
        group: the silo, in which this process is the first, and all others are in `serve`.
        ended: called when the silo is no longer needed.

    Raises:
        ValueError: the model looks across the samples of a minibatch.
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
        group: Group,
        seed: int = 0,
        uplink: Uplink | None = None,
        sum_dtype: torch.dtype = torch.float64,
        ended: Callable[[], None] | None = None,
    ) -> None:
        require_separable(model.module)
        self.group, self.ended, self.size = group, ended, group.size
        self.serial = SerialTrainer(
            dataset,
            model,
            algorithm,
            local,
            seed=seed,
            uplink=uplink,
            sum_dtype=sum_dtype,
            data=_RowNumbers(),
            gradient=_SiloGradient(model, dataset, group),
        )

    @property
    def memory(self) -> ClientMemory:
        """What the clients keep; the other processes keep nothing."""
        return self.serial.memory

    @property
    def clients(self) -> ClientVectors | None:
        """As `SerialTrainer.clients`."""
        return self.serial.clients

    def history_bytes(self, steps: int, batch: int) -> int:
        """Nothing is remembered."""
        return 0

    def train(self, plan: Plan, broadcast: Tensor, scale: float) -> PartialAverage:
        """As `SerialTrainer.train`.

        Raises:
            SiloBroken: a process is gone, or did not answer in time.
        """
        return self.serial.train(plan, broadcast, scale)

    def close(self) -> None:
        """End the other processes."""
        if self.group.group is not None:
            with contextlib.suppress(SiloBroken):  # they have ended
                self.group.broadcast(torch.tensor([_END] + [0] * (_HEADER - 1)), _FAREWELL)
            self.group.leave()
        if self.ended is not None:
            self.ended()


def serve(group: Group, model: FlatModel, dataset: FederatedDataset) -> None:
    """Every process of a silo but the first: gradients on request, until the first one says that it is over.

    Raises:
        SiloBroken: the first process is gone, or another one is.
    """
    model.module.train()
    parts = _Parts(model, dataset, group)
    numbers, vector = torch.empty(0, dtype=torch.int64), model.vector.new_empty(len(model.vector), device="cpu")
    while True:
        kind, count, draw = group.broadcast(torch.empty(_HEADER, dtype=torch.int64), _FOREVER).tolist()
        if kind == _END:
            return
        numbers = numbers.new_empty(count)
        group.broadcast(numbers)
        model.load(group.broadcast(vector))
        if draw:
            torch.manual_seed(draw + group.rank)
        try:
            found = parts.own(model.vector.view(1, -1), numbers)[0]
        except BaseException:
            group.leave()
            raise
        group.add(found)


class _Parts:
    """The part of a minibatch that falls to this process."""

    def __init__(self, model: FlatModel, dataset: FederatedDataset, group: Group) -> None:
        self.size, self.group = model.num_parameters, group
        self.data = ResidentSplit(dataset, dataset.train, model.device)
        self.gradient = SerialGradient(model, dataset.objective)

    def own(self, rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sums, over this process's samples of a minibatch with these row numbers, of gradients and losses.

        Returns:
            (P + 1,) on the host, the sum of the losses last; and (1, Q), the running statistics after it, None where
            no sample falls to this process.
        """
        mine = numbers.tensor_split(self.group.size)[self.group.rank]
        if len(mine) == 0:
            return torch.zeros(self.size + 1, dtype=rows.dtype), None
        x, y = self.data.gather(self.data.rows(mine.numpy()))
        losses, gradient, buffers = self.gradient(rows, x[None], y[None], torch.tensor([len(mine)]))
        return torch.cat([gradient[0].mul_(len(mine)), losses.to(gradient.dtype)]).cpu(), buffers


class _SiloGradient:
    """`fedsim.train.rows.RowGradient` of one model, where the samples x (1, B) are given by their row numbers."""

    def __init__(self, model: FlatModel, dataset: FederatedDataset, group: Group) -> None:
        self.parts, self.group, self.size = _Parts(model, dataset, group), group, model.num_parameters
        self.stochastic = is_stochastic(model, dataset)

    def __call__(self, rows: Tensor, x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, group = int(counts[0]), self.group
        numbers, before = x[0, :count].contiguous(), rows[:, self.size :].clone()
        # from the generator that the trainer has seeded for this client
        draw = int(torch.randint(1, _MAX_DRAW, ())) if self.stochastic else 0
        try:
            group.broadcast(torch.tensor([_GRADIENT, count, draw]))
            group.broadcast(numbers)
            group.broadcast(rows[0].detach().cpu().contiguous())
            sums, after = self.parts.own(rows, numbers)
            sums = group.add(sums).to(rows.device)
        except BaseException as error:  # Ctrl-C too
            group.leave()  # the others wait for what is missing of this exchange
            if isinstance(error, RuntimeError):
                raise SiloBroken(
                    f"the first process of this silo failed: {str(error).splitlines()[0][:160]}"
                ) from error
            raise
        if after is not None and not torch.equal(after, before):
            raise ValueError(
                "trainer=silo: the model moves running statistics, and those of a part of the minibatch are not those "
                "of the whole; choose a model without them, or trainer=serial"
            )
        return sums[-1:], sums[:-1].div_(count).view(1, -1), before


class _RowNumbers:
    """`fedsim.data.resident.ResidentSplit` for the first process: samples stay numbers until they are divided."""

    def samples_at_once(self, num_bytes: int) -> int:
        return num_bytes // 8

    def rows(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).long()  # as they are sent

    def gather_all(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        return ((rows, rows) for rows in parts)


def require_separable(module: nn.Module) -> None:
    """Refuse a model whose samples meet in the layers of PyTorch that look across a minibatch.

    Raises:
        ValueError: names the first of them.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"trainer=silo divides every minibatch among its processes, and {name or 'the model'} "
                f"({type(child).__name__}) looks across all of it: choose a model with GroupNorm, or trainer=serial"
            )
