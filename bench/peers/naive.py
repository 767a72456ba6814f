"""The loop most people write: a deep copy and a DataLoader for each client, all state dicts kept, then their mean."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from peers.common import Rounds, clients, load, model, values
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def naive(
    net: nn.Module,
    datasets: Sequence[TensorDataset],
    sizes: np.ndarray,
    cohorts: np.ndarray,
    *,
    rate: float,
    batch: int,
    shuffle: bool = True,
    done: Callable[[], None],
) -> None:
    """Train `net` in place, a round for each cohort, clients weighted by `sizes` (C,); calls `done` after each."""
    for cohort in cohorts:
        states = []
        for client in cohort:
            local = copy.deepcopy(net).train()
            optimizer = torch.optim.SGD(local.parameters(), lr=rate)
            for x, y in DataLoader(datasets[client], batch_size=batch, shuffle=shuffle):
                optimizer.zero_grad()
                nn.functional.cross_entropy(local(x), y).backward()
                optimizer.step()
            states.append(local.state_dict())
        shares = (sizes[cohort] / sizes[cohort].sum()).tolist()
        net.load_state_dict({k: sum(s[k] * w for s, w in zip(states, shares, strict=True)) for k in states[0]})
        done()


def filled(dataset: TensorDataset, batch: int) -> TensorDataset:
    """The same samples and the first ones again until the last minibatch is full, as FedJAX trains them."""
    rows = torch.arange(-(-len(dataset) // batch) * batch) % len(dataset)
    return TensorDataset(*dataset[rows])


def main() -> None:
    work = load()
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    datasets, net, rounds = clients(work), model(work), Rounds()
    if work.way == "filled":
        datasets = [filled(dataset, work.batch) for dataset in datasets]
    how = {"rate": work.rate, "batch": work.batch, "shuffle": work.shuffle}
    rounds.ready()
    naive(net, datasets, np.diff(work.offsets), work.cohorts, **how, done=rounds.done)
    rounds.finish(work, values(net), version=torch.__version__)


if __name__ == "__main__":
    main()
