"""Every file of conf/data runs from the command line, on small files in the set's true format."""

import json
from collections.abc import Callable

import pytest

from fedsim.cli import conf_dir

LEAF = {"leaf", "leaf_celeba", "reddit", "sent140", "shakespeare"}  # see tests/test_conf.py
ELSEWHERE = {"remote"}  # of a server without data: see tests/transport/test_deployment.py
OPTIONS = sorted({path.stem for path in (conf_dir() / "data").glob("*.yaml")} - LEAF - ELSEWHERE)
OWNED = {"femnist", "femnist_small", "celeba", "folders", "hub", "fcube"}  # those with clients of their own, and ...
RUN = ["server.num_rounds=1", "server.clients_per_round=2", "local.num_steps=1", "evaluate.max_samples=20"]
SMALL = {"femnist": ["data.num_clients=6"], "synthetic_leaf": ["data.num_clients=20"]}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_data_option_runs(fedsim, write_source: Callable[[str], list[str]], option: str):
    arguments = [f"data={option}", *write_source(option), *SMALL.get(option, [])]
    owned = option in OWNED or option.startswith("synthetic")  # ... the generated ones
    arguments.append("partition=natural" if owned else "partition=iid")
    if not owned:
        arguments.append("partition.num_clients=4")
    done = fedsim("+experiment=debug", *arguments, *RUN)
    assert done.code == 0, done.err
    summary = json.loads((done.directory / "summary.json").read_text())
    assert summary["num_clients"] == {"femnist": 6, "femnist_small": 20, "celeba": 3, "folders": 2, "hub": 5}.get(
        option, {"synthetic_leaf": 20, "synthetic_fedprox": 30, "synthetic_iid": 30}.get(option, 4)
    )


def test_sets_without_clients_say_what_to_choose(fedsim, write_source: Callable[[str], list[str]]):
    done = fedsim("+experiment=debug", "data=mnist", *write_source("mnist"))
    assert done.code == 1
    assert "data=mnist has no natural clients; choose partition=iid, dirichlet or shards" in done.err
