"""FedLab: its StandalonePipeline with the serial FedAvg trainer and the server weighted by samples."""

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
from peers.common import Rounds, Work, batches, clients, load, model, values


class Data:
    def __init__(self, work: Work) -> None:
        self.work, self.clients = work, clients(work)

    def get_dataloader(self, id: int, batch_size: int):
        return batches(self.work, self.clients[id])


class Cohorts:
    """The sampler."""

    def __init__(self, work: Work) -> None:
        self.cohorts = iter(work.cohorts.tolist())

    def sample(self, size: int) -> list[int]:
        return next(self.cohorts)


def main() -> None:
    work, rounds = load(), Rounds()
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)

    class Pipeline(StandalonePipeline):
        def evaluate(self) -> None:  # called at the end of every round
            rounds.done()

    trainer = FedAvgSerialClientTrainer(model(work), work.num_clients)
    trainer.setup_dataset(Data(work))
    trainer.setup_optim(1, work.batch, work.rate)
    handler = FedAvgServerHandler(
        model(work),
        len(work.cohorts),
        num_clients=work.num_clients,
        sample_ratio=work.cohorts.shape[1] / work.num_clients,
        sampler=Cohorts(work),
    )
    rounds.ready()
    Pipeline(handler, trainer).main()
    rounds.finish(work, values(handler.model), version=f"{version('fedlab')}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
