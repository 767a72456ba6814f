"""BlazeFL: its FedAvg. Way "thread", its fast one, trains a client in each of as many threads as there are cores; way
"base" trains one client after another, with all cores inside an operator.
"""

from enum import StrEnum
from importlib.metadata import version

import torch
from blazefl.contrib import fedavg
from peers.common import Rounds, Work, batches, clients, load, model, values


class Name(StrEnum):
    MODEL = "model"


class Models:
    """What BlazeFL calls a model selector."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def select_model(self, model_name: str) -> torch.nn.Module:
        return model(self.work)


class Data:
    """What BlazeFL calls a partitioned dataset."""

    def __init__(self, work: Work) -> None:
        self.work, self.clients = work, clients(work)

    def get_dataset(self, type_, cid):
        return self.clients[cid]

    def set_dataset(self, type_, cid, dataset) -> None:
        raise NotImplementedError("the clients' samples stay")

    def get_dataloader(self, type_, cid, batch_size, generator=None):
        return batches(self.work, self.clients[cid], generator=generator)


def main() -> None:
    work, rounds = load(), Rounds()
    threaded = work.way != "base"
    torch.set_num_threads(1 if threaded else work.threads)
    torch.manual_seed(0)
    size = work.cohorts.shape[1]
    common = {
        "model_selector": Models(work),
        "model_name": Name.MODEL,
        "dataset": Data(work),
        "device": "cpu",
        "num_clients": work.num_clients,
        "batch_size": work.batch,
        "seed": 0,
    }
    handler = fedavg.FedAvgBaseServerHandler(
        **common, global_round=len(work.cohorts), sample_ratio=size / work.num_clients
    )
    if threaded:
        trainer = fedavg.FedAvgThreadPoolClientTrainer(**common, epochs=1, lr=work.rate, num_parallels=work.threads)
    else:
        trainer = fedavg.FedAvgBaseClientTrainer(**common, epochs=1, lr=work.rate)
    handler.num_clients_per_round = size
    rounds.ready()
    for cohort in work.cohorts.tolist():  # as in its quickstart, without the evaluation
        trainer.local_process(handler.downlink_package(), cohort)
        for package in trainer.uplink_package():
            handler.load(package)
        rounds.done()
    about = f"{version('blazefl')}, torch {torch.__version__}"
    rounds.finish(work, values(handler.model), version=about)


if __name__ == "__main__":
    main()
