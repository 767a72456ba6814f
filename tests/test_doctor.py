"""The doctor: it tells what is there, what is missing and how to get it, and knows all of pyproject.toml's extras."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import doctor

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=!~;]", requirement)[0] for requirement in requirements}


def test_it_knows_what_the_package_needs():
    assert set(doctor.REQUIRED) <= names(PROJECT["dependencies"])
    for extra, (packages, _) in doctor.EXTRAS.items():
        assert set(packages) <= names(PROJECT["optional-dependencies"][extra]), extra
    assert set(doctor.EXTRAS) == set(PROJECT["optional-dependencies"]) - {"dev"}


def test_a_healthy_machine(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in out
    assert np.__version__ in out
    assert re.search(r"memory +[\d.]+ GiB of [\d.]+ GiB free", out)
    assert "a run can start" in out


def test_what_is_missing_comes_with_its_command(capsys, monkeypatch):
    version = doctor._version
    absent = ("wandb", "pandas")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else version(name))
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert re.search(r"pandas +MISSING", out)
    assert "missing wandb: pip install '.[tracking]' in fedsim's folder" in re.sub(
        r"missing tensorboard, wandb(, mlflow)?", "missing wandb", out
    )
    assert "a run cannot start: pip install pandas" in out


@pytest.mark.parametrize(("number", "said"), [(1, "uses 1 thread ("), (8, "uses 8 threads (")])
def test_one_thread_is_no_threads(capsys, monkeypatch, number, said):
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    doctor.main()
    assert said in capsys.readouterr().out


@pytest.mark.gpu
def test_gpus_are_listed(capsys):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    doctor.main()
    assert torch.cuda.get_device_name(0) in capsys.readouterr().out
