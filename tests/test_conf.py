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
    for group in ("algorithm", "model", "partition", "trainer", "sampler", "local")
    for path in (CONF / group).glob("*.yaml")
)


# What a partition of six writers' letters needs, where that is not partition.num_clients=5.
PARTITIONS = {
    "natural": [],
    "fcube": [],
    "from_file": [],
    "feature_noise": ["partition.base.num_clients=5"],
    "rotation": ["partition.base.num_clients=5"],
}
DIGITS = ("label_skew", "pathological")  # five clients with two classes each are too few for 62 letters


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_of_every_group_runs(fedsim, tmp_path, mnist_root, group, option):
    data = ["+experiment=debug", "data.num_clients=6"]
    if option in DIGITS:
        data = ["+experiment=mnist_iid", f"data.root={mnist_root}"]
    arguments = [*data, *TINY, "local.num_steps=1", f"{group}={option}"]
    if group == "partition":
        arguments += PARTITIONS.get(option, ["partition.num_clients=5"])
    if option == "from_file":
        rows = tmp_path / "rows.json"
        rows.write_text("[[0, 5, 7], [1, 2], [3, 4]]")
        arguments.append(f"partition.path={rows}")
    done = fedsim(*arguments)
    if option == "fcube":  # composed and built, but letters are no points of a cube
        assert "partition=fcube needs three numbers a sample, but one sample has shape (1, 28, 28)" in done.err
        return
    assert done.code == 0, done.err
