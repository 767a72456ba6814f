"""Every experiment trains on its own set: a generated one in small, or small files in the set's true format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.cli import conf_dir

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
RUN = ["server.num_rounds=3", "server.evaluate_every=2", "evaluate.max_samples=20", "local.num_steps=2"]
RUN += ["trainer=serial", "tracking.quiet=true"]
FEW = ["partition.num_clients=4", "server.clients_per_round=2"]  # of forty samples, as `write_source` writes them
THIN = [*FEW, "partition.min_samples=1"]
# What makes an experiment small; the files of those that are not here have everything.
SMALL = {
    "adult_dirichlet": ["partition.min_samples=1"],
    "celeba": ["data.image_size=8", "model.num_channels=2", "server.clients_per_round=2"],
    "cifar10_dirichlet": THIN,
    "cifar100_dirichlet": FEW,
    "covtype_dirichlet": THIN,
    "debug": ["data.num_clients=6"],
    "emnist_dirichlet": [*THIN, "model.hidden_size=16"],
    "fashion_mnist_dirichlet": [*THIN, "model.hidden_size=16"],
    "femnist_convnet2": ["data.num_clients=6", "partition.num_clients=4", "model.hidden_size=16"],
    "femnist_fedavg": ["data.num_clients=6", "server.clients_per_round=2", "model.hidden_size=16"],
    "kmnist_noise": [*FEW, "model.hidden_size=16"],
    "leaf_celeba": ["data.size=8", "model.num_channels=2", "server.clients_per_round=2"],
    "mnist_dirichlet": ["partition.min_samples=1"],
    "rcv1_dirichlet": THIN,
    "reddit": ["data.vocabulary_size=6", "model.hidden_size=4", "data.length=3", "server.clients_per_round=2"],
    "sent140": ["data.vocabulary_size=6", "model.hidden_size=4", "data.length=3", "server.clients_per_round=2"],
    "shakespeare": ["data.num_clients=4", "model.hidden_size=4", "server.clients_per_round=2"],
    "svhn_dirichlet": THIN,
}

# What sets call themselves, where that is not the name of their file in conf/data.
NAMES = {"femnist_small": "femnist", "leaf_celeba": "celeba", "synthetic_fedprox": "synthetic(1, 1)"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains(
    fedsim, write_source: Callable[[str], list[str]], mnist_root: Path, leaf_root: Path, name: str
):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    data = text.partition("override /data: ")[2].split()[0]
    arguments = [f"+experiment={name}", *RUN, *SMALL.get(name, [])]
    if data in ("sent140", "reddit", "leaf_celeba"):
        arguments.append(f"data.root={leaf_root}")
        if data == "leaf_celeba":
            arguments.append(f"data.images={leaf_root / 'celeba' / 'raw' / 'img_align_celeba'}")
    elif data == "mnist":
        arguments.append(f"data.root={mnist_root}")
    else:
        arguments += write_source(data)
    done = fedsim(*arguments)
    assert done.code == 0, done.err
    summary = json.loads((done.directory / "summary.json").read_text())
    assert summary["rounds"] == 3
    assert summary["data"] == NAMES.get(data, data), "another set ran in its place"
    losses = [json.loads(line)["train_loss"] for line in (done.directory / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert len(set(losses)) == 3


@pytest.mark.parametrize("name", ["sent140", "reddit", "leaf_celeba"])
def test_an_experiment_without_its_data_says_which_folder_is_missing(fedsim, name):
    done = fedsim(f"+experiment={name}")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"fedsim: error: data={name} needs data.root=<folder with LEAF's")
