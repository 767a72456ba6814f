"""Every file of conf/ composes; every experiment runs a few tiny rounds on the data it names, or on a stand-in."""

import struct
from pathlib import Path

import numpy as np
import pytest

from fedsim.cli import conf_dir

CONF = conf_dir()
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TINY = ["server.num_rounds=1", "server.clients_per_round=2", "evaluate.max_samples=20", "evaluate.clients=false"]


def idx(path: Path, array: np.ndarray) -> None:
    """Write an array in the format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("train", 1200), ("t10k", 50)):
        raw = tmp_path / "data" / "MNIST" / "raw"
        idx(raw / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(size) % 10).astype(np.uint8))
    return tmp_path / "data"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs(fedsim, mnist_root, name):
    arguments = [f"+experiment={name}", *TINY]
    if name.startswith("mnist"):
        arguments.append(f"data.root={mnist_root}")
    elif name.startswith("cifar10"):  # its network on images that are here: CIFAR's own reader is tested elsewhere
        arguments += ["data=mnist", f"data.root={mnist_root}", "partition.min_samples=1"]
    else:
        arguments.append("data.num_clients=6")
        if name == "femnist_convnet2":
            arguments.append("partition.num_clients=4")
        if name != "debug":
            arguments += ["model.hidden_size=16"]
    done = fedsim(*arguments)
    assert done.code == 0, done.err
    assert (done.directory / "summary.json").exists()


GROUPS = sorted(
    (path.parent.name, path.stem)
    for group in (
        "aggregator",
        "algorithm",
        "attack",
        "local",
        "model",
        "partition",
        "sampler",
        "trainer",
        "transforms",
    )
    for path in (CONF / group).glob("*.yaml")
)


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_of_every_group_runs(fedsim, group, option):
    arguments = ["+experiment=debug", "data.num_clients=6", *TINY, "local.num_steps=1", f"{group}={option}"]
    if group == "partition" and option != "natural":
        arguments.append("partition.num_clients=5")
    if group == "aggregator":
        arguments.append("server.clients_per_round=6")
        if option == "bulyan":
            arguments.append("aggregator.num_attackers=0")
    if option == "fixed":
        arguments.append("sampler.cohorts=[[0,3]]")
    if f"{group}={option}" == "transforms=gaussian":
        arguments[-1] = "transforms=[clip,gaussian]"
    done = fedsim(*arguments)
    assert done.code == 0, done.err
