"""The two workloads that fedsim and other simulators are timed on: their samples, initial weights and cohorts.

W1: FEMNIST's CNN (6.6M parameters), 10 of 350 clients of about 110 samples, batch 10, learning rate 0.01, one epoch.
W2: logistic regression 784-10, 100 of 1000 clients of about 60 samples, batch 10, learning rate 0.03, one epoch.

Images are a centre for each class plus noise, clients' sizes log-normal and their labels skewed. Run as a program it
prints what each workload consists of.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.data.federated import FederatedDataset, Split
from fedsim.models import leaf_cnn, logistic

BATCH = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What `make` draws, and how it is trained.

    Attributes:
        clients, per_round: registered, and in a round.
        mean: of the clients' sizes, about, before they are clipped to 10 ... 400.
        classes: of the samples.
        noise: standard deviation of a pixel around its class's centre, whose own is 1.
        rate: the clients' learning rate.
        model: factory.
    """

    clients: int
    per_round: int
    mean: int
    classes: int
    noise: float
    rate: float
    model: Callable[..., nn.Module]


WORKLOADS = {
    "W1": Workload(clients=350, per_round=10, mean=114, classes=62, noise=1.0, rate=0.01, model=leaf_cnn),
    "W2": Workload(clients=1000, per_round=100, mean=60, classes=10, noise=10.0, rate=0.03, model=logistic),
}


def make(name: str, rounds: int) -> tuple[FederatedDataset, np.ndarray]:
    """The clients, and the cohort of each round (rounds, per_round), sorted; more rounds begin like fewer."""
    w, rng = WORKLOADS[name], np.random.default_rng(1)
    sizes = np.clip(np.round(rng.lognormal(np.log(w.mean) - 0.18, 0.6, w.clients)), 10, 400).astype(np.int64)
    centres = rng.standard_normal((w.classes, 28, 28))
    targets = np.concatenate([rng.choice(w.classes, n, p=rng.dirichlet(np.ones(w.classes))) for n in sizes])
    inputs = np.empty((len(targets), 1, 28, 28), np.float32)
    for start in range(0, len(targets), 4096):
        part = targets[start : start + 4096]
        inputs[start : start + 4096, 0] = centres[part] + w.noise * rng.standard_normal((len(part), 28, 28))
    cohorts = np.stack([rng.choice(w.clients, w.per_round, replace=False) for _ in range(rounds)])
    return pack(name, inputs, targets, np.append(0, np.cumsum(sizes))), np.sort(cohorts)


def pack(name: str, inputs: np.ndarray, targets: np.ndarray, offsets: np.ndarray) -> FederatedDataset:
    """Client c has the samples offsets[c] ... offsets[c + 1] - 1; nothing is copied."""
    split = Split(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), offsets=offsets)
    ids = [str(i) for i in range(split.num_clients)]
    return FederatedDataset(name=name, train=split, client_ids=ids, num_classes=WORKLOADS[name].classes)


def initial_model(name: str, dataset: FederatedDataset) -> nn.Module:
    """The model as every way begins with it; draws from PyTorch's generator, seeded here."""
    torch.manual_seed(0)
    return WORKLOADS[name].model(dataset.input_shape, dataset.num_classes)


def dump(name: str, rounds: int, folder: Path) -> None:
    """Leave a workload in files that need neither fedsim nor PyTorch to be read; `peers.common.load` does it."""
    dataset, cohorts = make(name, rounds)
    train, w = dataset.train, WORKLOADS[name]
    np.save(folder / "inputs.npy", train.inputs.numpy())  # a file of its own, which several processes can map
    parameters = {f"p{i}": p.detach().numpy() for i, p in enumerate(initial_model(name, dataset).parameters())}
    np.savez(folder / "rest.npz", targets=train.targets.numpy(), offsets=train.offsets, cohorts=cohorts, **parameters)
    settings = {"name": name, "rate": w.rate, "batch": BATCH, "classes": w.classes}
    (folder / "settings.json").write_text(json.dumps(settings))


def main() -> None:
    for name, workload in WORKLOADS.items():
        dataset, cohorts = make(name, 10)
        sizes = dataset.train.sizes
        samples = [int(sizes[cohort].sum()) for cohort in cohorts]
        print(name, {k: v for k, v in asdict(workload).items() if k != "model"})
        print(f"  {sizes.sum():,} samples; a client has {sizes.min()} to {sizes.max()}, a round {samples}")


if __name__ == "__main__":
    main()
