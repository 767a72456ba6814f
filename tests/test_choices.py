"""A part on the command line in the place of an experiment's: it works, or one line says what does not fit.

tests/test_conf.py shows it for every partition.
"""

import json
from pathlib import Path

import pytest
import yaml

RUN = ["server.num_rounds=1", "server.clients_per_round=2", "local.num_steps=1", "evaluate.clients=false"]
RUN.append("trainer=serial")


def test_options_of_the_experiments_own_choice_are_left_out_and_told(fedsim):
    done = fedsim("+experiment=fcube", "model=logistic", "data.num_samples=400", *RUN)
    assert done.code == 0, done.err
    line = "model=logistic has no option model.hidden_sizes, which +experiment=fcube sets for another choice: left out"
    assert line in done.err
    assert "hidden_sizes" not in (done.directory / "config.yaml").read_text()


def test_the_value_of_an_option_that_both_have_is_the_experiments(fedsim):
    done = fedsim(
        "+experiment=mnist_shards",
        "data=fcube",
        "partition=feature_noise",
        "data.num_samples=400",
        "model=logistic",
        *RUN,
    )
    assert done.code == 0, done.err
    assert json.loads((done.directory / "summary.json").read_text())["num_clients"] == 100


def test_each_job_of_a_sweep_has_the_options_of_its_own_choice(fedsim, tmp_path: Path):
    done = fedsim(
        "-m",
        "+experiment=fcube",
        "model=mlp,logistic",
        "data.num_samples=400",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        *RUN,
    )
    assert done.code == 0, done.err
    kept = ["hidden_sizes" in (tmp_path / "sweep" / job / "config.yaml").read_text() for job in ("0", "1")]
    assert kept == [True, False]


def test_an_option_that_the_command_line_sets_is_refused_where_the_choice_has_none(fedsim):
    done = fedsim("+experiment=fcube", "model=logistic", "model.hidden_sizes=[8]", *RUN)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "fedsim: error: model=logistic has no option model.hidden_sizes"


def test_an_option_that_is_added_with_a_plus_sign_stays(fedsim):
    done = fedsim("+experiment=fcube", "model=logistic", "data=fcube", "+data.unheard_of=1", *RUN)
    assert done.code == 1
    assert "unheard_of" in done.err.splitlines()[-1]


@pytest.mark.parametrize("data", ["fcube", "synthetic_fedprox", "femnist_small"])
def test_other_data_take_the_place_of_an_experiments(fedsim, data: str):
    done = fedsim("+experiment=synthetic_leaf", f"data={data}", *RUN)
    assert done.code == 0, done.err


SWAPPED = ("+experiment=fcube", "model=logistic", "--cfg", "job")


def test_the_configuration_that_is_shown_is_the_one_that_is_used(fedsim):
    """fcube sets model.hidden_sizes, which a linear model has not."""
    shown = fedsim(*SWAPPED)
    assert shown.code == 0, shown.err
    assert yaml.safe_load(shown.out)["model"] == {"_target_": "fedsim.models.logistic", "_partial_": True}
    assert shown.err.splitlines() == [
        "model=logistic has no option model.hidden_sizes, which +experiment=fcube sets for another choice: left out"
    ]
    assert "hidden_sizes" not in fedsim(*SWAPPED, "--package", "model").out
    assert "hidden_sizes:" in fedsim("+experiment=fcube", "--cfg", "job").out


def test_what_is_refused_is_not_shown(fedsim):
    shown = fedsim("model.hidden_sizes=[8]", *SWAPPED)
    assert shown.code == 1
    assert shown.err.splitlines() == ["fedsim: error: model=logistic has no option model.hidden_sizes"]
    assert not shown.out
