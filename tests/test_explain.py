"""Mistakes explained; tests/test_cli.py shows them from end to end."""

import pytest

from fedsim.cli import conf_dir
from fedsim.config import LocalConfig
from fedsim.explain import explain, known_keys, unknown, where


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("experiment", "experiment is chosen with a plus sign: +experiment=NAME"),
        ("sweeep", "unknown option 'sweeep'; did you mean +sweep=NAME?"),
        ("local.momntum", "unknown option 'local.momntum'; did you mean local.momentum or local.num_epochs?"),
        ("zzz", "unknown option 'zzz'; see python -m fedsim --cfg job"),
        ("local.lr", "unknown option 'local.lr'; did you mean local.learning_rate?"),
        ("lr", "unknown option 'lr'; did you mean local.learning_rate?"),
        ("epochs", "unknown option 'epochs'; did you mean local.num_epochs?"),
        ("momentum", "unknown option 'momentum'; did you mean local.momentum?"),
        ("algoritm", "unknown option 'algoritm'; did you mean algorithm?"),
        ("local.zzz", "unknown option 'local.zzz'; local has momentum, learning_rate, num_epochs"),
    ],
)
def test_near_names(key, line):
    known = ["local", "local.momentum", "local.learning_rate", "local.num_epochs", "device", "algorithm"]
    assert unknown(key, [*known, "algorithm._target_"]) == line


def test_an_error_in_a_part_of_ones_own_is_told_with_its_place():
    for call, place in (
        (lambda: [1][5], " (IndexError in test_explain.py, line "),
        (lambda: LocalConfig(momentum=2), ""),
    ):
        with pytest.raises((IndexError, ValueError)) as raised:
            call()
        assert where(raised.value).startswith(place)
        assert bool(where(raised.value)) == bool(place)


def test_an_experiment_without_its_plus_is_told_with_its_name(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fedsim", "experiment=debug"])
    assert unknown("experiment", []) == "experiment is chosen with a plus sign: +experiment=debug"


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("submitit_slurm", "slurm")])
def test_a_plugin_that_is_missing_comes_with_its_command(launcher, extra):
    text = f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options in 'hydra/launcher':\n\tbasic\nConfig"
    line = explain(ValueError(text), conf_dir())
    assert line == f"hydra/launcher={launcher} needs Hydra's plugin: pip install '.[{extra}]' in fedsim's folder"


def test_options_of_the_chosen_groups_are_known(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fedsim", "algorithm=fedprox", "local.lerning_rate=1"])
    assert {"algorithm.proximal_weight", "local.learning_rate", "server"} <= set(known_keys(conf_dir()))
