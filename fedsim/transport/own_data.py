"""A worker that holds data of its own: what it tells the server, and how it trains and tests its clients."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fedsim.aggregate import PartialAverage
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset
from fedsim.data.remote import among
from fedsim.objective import Objective
from fedsim.train.base import Trainer
from fedsim.transport.base import Job
from fedsim.transport.inprocess import InProcess
from fedsim.transport.wire import Message

Evaluate = Callable[[Tensor], "dict[str, float] | None"]
"""A model (P + Q,) -> `sums` of the worker's objective, or None: there is no test sample."""


def sums(objective: Objective) -> tuple[str, ...]:
    """What a worker that takes part tells of the test samples of its clients: their numbers, and over their places the
    sum of each figure."""
    return ("places", "samples", "clients", *(f"sum_{name}" for name in ("loss", *objective.metrics)))


class OwnData:
    """A worker's side: trains and tests the clients that it holds, once the server has numbered them.

    Args:
        dataset: its clients and their samples.
        make_trainer: (data set, first job) -> the trainer.
        local, seed: as for `fedsim.transport.inprocess.InProcess`.
        prefix: put before the names of its clients.
        evaluate: tests a model; None: it declines, whoever asks.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        make_trainer: Callable[[FederatedDataset, Job], Trainer],
        *,
        local: LocalConfig,
        seed: int,
        prefix: str = "",
        evaluate: Evaluate | None = None,
    ) -> None:
        self.dataset, self.make_trainer, self.local, self.seed = dataset, make_trainer, local, seed
        self.prefix, self.evaluate = prefix, evaluate
        self.seated: FederatedDataset | None = None
        self.own: InProcess | None = None

    @property
    def holds(self) -> dict[str, Any]:
        """What the server learns about its clients."""
        return {
            "names": [self.prefix + name for name in self.dataset.client_ids],
            "sizes": self.dataset.train.sizes.tolist(),
            "evaluate": self.evaluate is not None,
        }

    def seat(self, message: Message) -> None:
        """The server has numbered the clients, as before or, for another run, anew."""
        index, num_clients = message.tensors["index"].numpy(), int(message.fields["num_clients"])
        seated = among(self.dataset, index, num_clients)
        if self.seated is None or list(seated.client_ids) != list(self.seated.client_ids):
            self.close()
            self.seated, self.own = seated, None

    def test(self, message: Message) -> Message:
        """The sums that the server asks for."""
        found = None if self.evaluate is None else self.evaluate(message.tensors["vector"])
        return Message(kind="metrics", fields=found or dict.fromkeys(sums(self.dataset.objective), 0.0))

    def run_round(self, job: Job) -> PartialAverage:
        """As `InProcess.run_round`."""
        assert self.seated is not None, "clients are numbered before they train"
        if self.own is None:
            trainer = self.make_trainer(self.seated, job)
            self.own = InProcess(trainer, self.seated.train, self.local, seed=self.seed)
        return self.own.run_round(job)

    def close(self) -> None:
        """End what the trainer has started."""
        if self.own is not None:
            self.own.close()
