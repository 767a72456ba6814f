"""Every option of every group runs; tests/data has those of data and the experiments."""

import json

import pytest

from fedsim.cli import conf_dir

CONF = conf_dir()
TINY = ["server.num_rounds=1", "server.clients_per_round=2", "evaluate.max_samples=20", "evaluate.clients=false"]


SMALL = {
    "shakespeare": ["data.num_clients=4", "model.hidden_size=4", "local.num_steps=1"],
    "sent140": ["data.vocabulary_size=6", "model.hidden_size=4", "data.length=3"],
    "reddit": ["data.vocabulary_size=6", "model.hidden_size=4", "data.length=3"],
    "leaf_celeba": ["data.size=8", "model.num_channels=2"],
}


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
    if option == "present":
        arguments.append("devices=phones")
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
