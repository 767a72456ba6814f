"""Every file of conf/ composes; every experiment runs a few tiny rounds on the data it names, or on a stand-in."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


SMALL = {
    "shakespeare": ["data.num_clients=4", "model.hidden_size=4", "local.num_steps=1"],
    "sent140": ["data.vocabulary_size=6", "model.hidden_size=4", "data.length=3"],
    "reddit": ["data.vocabulary_size=6", "model.hidden_size=4", "data.length=3"],
    "leaf_celeba": ["data.size=8", "model.num_channels=2"],
}


@pytest.fixture
def leaf_root(tmp_path: Path) -> Path:
    """LEAF's sent140, reddit and celeba in small."""
    root, images = tmp_path / "leaf", tmp_path / "leaf" / "celeba" / "raw" / "img_align_celeba"
    images.mkdir(parents=True)
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(images / "1.png")
    samples = {
        "sent140": (["", "", "", "", "so good !"], 1),
        "reddit": ([["<BOS>", "so", "good"]], {"target_tokens": [["so", "good", "<PAD>"]]}),
        "celeba": ("1.png", 0),
    }
    for name, (x, y) in samples.items():
        data = {user: {"x": [x, x, x], "y": [y, y, y]} for user in ("ann", "bob", "cy")}
        for split in ("train", "test"):
            (root / name / "data" / split).mkdir(parents=True)
            content = {"users": list(data), "num_samples": [3, 3, 3], "user_data": data}
            (root / name / "data" / split / "all_data.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs(fedsim, mnist_root, leaf_root, name):
    arguments = [f"+experiment={name}", *TINY]
    if name.startswith("mnist"):
        arguments.append(f"data.root={mnist_root}")
    elif name.startswith("cifar10"):  # its network on images that are here: CIFAR's own reader is tested elsewhere
        arguments += ["data=mnist", f"data.root={mnist_root}", "partition.min_samples=1"]
    elif name in SMALL:
        arguments += SMALL[name]
        if name == "leaf_celeba":
            arguments.append(f"data.images={leaf_root / 'celeba' / 'raw' / 'img_align_celeba'}")
        if name != "shakespeare":
            arguments.append(f"data.root={leaf_root}")
    elif name.startswith("adult"):  # as for CIFAR; it wants a model of vectors, which takes images too
        arguments += ["data=mnist", f"data.root={mnist_root}", "local.num_steps=1"]
    elif name.startswith("femnist"):
        arguments += ["data.num_clients=6", "model.hidden_size=16"]
        if name == "femnist_convnet2":
            arguments.append("partition.num_clients=4")
    else:
        arguments.append("local.num_steps=1")
    done = fedsim(*arguments)
    assert done.code == 0, done.err
    assert (done.directory / "summary.json").exists()


@pytest.mark.parametrize("name", ["sent140", "reddit", "leaf_celeba"])
def test_an_experiment_without_its_data_says_which_folder_is_missing(fedsim, name):
    done = fedsim(f"+experiment={name}")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"fedsim: error: data={name} needs data.root=<folder with LEAF's")


def test_any_leaf_set_of_numbers_trains(fedsim, tmp_path):
    data = {user: {"x": [[0.5, 1.5]] * 3, "y": [0, 1, 1]} for user in ("ann", "bob")}
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "a.json").write_text(json.dumps({"user_data": data}))
    arguments = ["data=leaf", f"data.root={tmp_path}", "data.num_classes=2", "data.input_shape=[2]", "model=logistic"]
    assert fedsim(*arguments, *TINY).code == 0
    done = fedsim("data=leaf", "model=logistic")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "fedsim: error: these options need a value: data.root"


GROUPS = sorted(
    (path.parent.name, path.stem)
    for group in (
        "aggregator",
        "algorithm",
        "attack",
        "devices",
        "local",
        "model",
        "sampler",
        "trainer",
        "transforms",
    )
    for path in (CONF / group).glob("*.yaml")
)


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_of_every_group_runs(fedsim, tmp_path, mnist_root, leaf_root, group, option):
    data = ["+experiment=debug", "data.num_clients=6"]
    if group == "model" and option.endswith("lstm"):  # takes tokens, not images
        name = option.removesuffix("_lstm")
        data = [f"+experiment={name}", *SMALL[name]]
        if name != "shakespeare":
            data.append(f"data.root={leaf_root}")
    arguments = [*data, *TINY, "local.num_steps=1", f"{group}={option}"]
    if option in ("fedbn", "lg_fedavg"):  # they need more than one layer
        arguments += ["model=convnet2", "model.hidden_size=16"]
    if option in ("fedasync", "fedbuff"):
        arguments += ["devices=equal", *(["algorithm.buffer_size=2"] if option == "fedbuff" else [])]
    if (group, option) == ("devices", "trace"):
        (tmp_path / "trace.csv").write_text("samples_per_second,download,upload\n10,1e6,1e5\n20,1e6,1e5\n")
        arguments.append(f"devices.path={tmp_path / 'trace.csv'}")
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


# What runs in the place of mnist_shards' digits and 100 clients, where a partition needs something else.
OTHERS = {
    "fcube": (["data=fcube", "model=logistic"], 100),  # points of a cube
    "natural": (
        ["data=femnist_small", "data.num_clients=6", "partition.num_clients=4"],
        4,
    ),  # clients of the data's own
    "grouped_natural": (["data=femnist_small", "data.num_clients=6", "partition.num_clients=3"], 3),
    "from_file": (["partition.path=rows.json"], 3),
}


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "partition").glob("*.yaml")))
def test_every_partition_runs_in_the_place_of_an_experiments(fedsim, tmp_path, mnist_root, option):
    arguments, num_clients = OTHERS.get(option, ([], 100))
    if not any(a.startswith("data=") for a in arguments):
        arguments = [*arguments, f"data.root={mnist_root}"]
    (tmp_path / "rows.json").write_text("[[0, 5, 7], [1, 2], [3, 4]]")
    done = fedsim("+experiment=mnist_shards", f"partition={option}", *arguments, *TINY, "trainer=serial")
    assert done.code == 0, done.err
    assert json.loads((done.directory / "summary.json").read_text())["num_clients"] == num_clients
