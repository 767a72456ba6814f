"""pfl-research: FederatedAveraging on its SimulatedBackend, clients as tensors in memory, weighted by their samples.

pfl never shuffles a client's samples, which spares it a cost that the others pay. Its first round evaluates as well.
"""

from importlib.metadata import version
from itertools import cycle

import torch
from peers.common import Rounds, clients, load, model, values
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy

NEVER = 10**9


def main() -> None:
    work = load()
    torch.set_num_threads(work.threads)
    datasets, net, rounds = clients(work), model(work), Rounds()

    def loss(x, y, eval=False):
        return cross_entropy(net.train(not eval)(x), y)

    @torch.no_grad()
    def metrics(x, y, eval=True):
        return {"loss": Weighted(loss(x, y, eval).item() * len(y), len(y))}

    net.loss, net.metrics = loss, metrics  # where pfl looks for them
    order = cycle(work.cohorts.reshape(-1).tolist())
    data = FederatedDataset(
        lambda client: PyTorchTensorDataset(datasets[client].tensors, user_id=str(client)), lambda: next(order)
    )

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            rounds.done()
            return False, Metrics()

    wrapped = PyTorchModel(
        net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
    rounds.ready()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=len(work.cohorts),
            evaluation_frequency=NEVER,
            train_cohort_size=work.cohorts.shape[1],
            val_cohort_size=None,
        ),
        backend=backend,
        model=wrapped,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.rate, local_batch_size=work.batch
        ),
        callbacks=[Clock()],
    )
    rounds.finish(work, values(net), version=f"{version('pfl')}, torch {torch.__version__}", note="does not shuffle")


if __name__ == "__main__":
    main()
