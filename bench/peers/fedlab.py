"""FedLab: its StandalonePipeline with the serial FedAvg trainer and handler.

Version 1.3.0 averages clients with equal weights; as its documentation tells, two methods are overridden to weigh them
by their samples.
"""

from collections.abc import Iterator
from importlib.metadata import version

import torch

try:
    import torchvision  # noqa: F401 (FedLab imports it)
except RuntimeError:  # a build for another PyTorch: declare the operators it misses, which averaging never calls
    missing = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        missing.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline
from fedlab.utils import Aggregators, SerializationTool
from peers.common import Rounds, Work, batches, clients, load, model, values


class Data:
    def __init__(self, work: Work) -> None:
        self.work, self.clients = work, clients(work)

    def get_dataloader(self, id: int, batch_size: int):
        return batches(self.work, self.clients[id])


class Trainer(FedAvgSerialClientTrainer):
    def train(self, model_parameters, train_loader):
        return [*super().train(model_parameters, train_loader), torch.tensor(len(train_loader.dataset))]


class Handler(FedAvgServerHandler):
    cohorts: Iterator[list[int]]

    def sample_clients(self) -> list[int]:
        return next(self.cohorts)

    def global_update(self, buffer) -> None:
        parameters, sizes = zip(*buffer, strict=True)
        mean = Aggregators.fedavg_aggregate(list(parameters), torch.stack(sizes))
        SerializationTool.deserialize_model(self._model, mean)


def main() -> None:
    work, rounds = load(), Rounds()
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)

    class Pipeline(StandalonePipeline):
        def evaluate(self) -> None:  # called at the end of every round
            rounds.done()

    trainer = Trainer(model(work), work.num_clients)
    trainer.setup_dataset(Data(work))
    trainer.setup_optim(1, work.batch, work.rate)
    share = (work.cohorts.shape[1] + 0.5) / work.num_clients  # FedLab rounds down
    handler = Handler(model(work), len(work.cohorts), share)
    handler.cohorts = iter(work.cohorts.tolist())
    rounds.ready()
    Pipeline(handler, trainer).main()
    rounds.finish(work, values(handler.model), version=f"{version('fedlab')}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
