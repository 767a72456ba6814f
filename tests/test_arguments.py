"""Options of factories: each group's own are taken, others are refused with the near names, and so are other types."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from fedsim.arguments import fits, refuse_misfits
from fedsim.cli import conf_dir
from fedsim.config import Config, TrackingConfig

GROUPS = ("data", "partition", "model", "algorithm", "trainer", "sampler", "devices", "aggregator", "attack")
NAMED = ("transforms", "tracking")  # whose options stand under a name each
FILES = [file for group in (*GROUPS, *NAMED) for file in sorted((conf_dir() / group).glob("*.yaml"))]


def factory(group: str, option: str) -> dict[str, Any]:
    """What conf/GROUP/OPTION.yaml holds, with something for what it leaves to others."""
    node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{option}.yaml"))
    for entry in node.pop("defaults", ()):
        if isinstance(entry, dict):  # {"/partition@base": "iid"}
            ((where, name),) = entry.items()
            other, _, key = where.strip("/").partition("@")
            node[key] = factory(other, name)
        elif entry != "_self_":
            node = factory(group, entry) | node
    if group == "tracking":
        node = {option: node}
    for key in [key for key, value in node.items() if value == "???" or str(value).startswith("${")]:
        hint = inspect.signature(get_object(node["_target_"]), eval_str=True).parameters[key].annotation
        node[key] = next(value for value in (2, [2], "x") if fits(value, hint))
    return node


PLAIN = {
    group: factory(group, option)
    for group, option in {
        "data": "femnist", "partition": "natural", "model": "logistic", "algorithm": "fedavg", "trainer": "serial",
        "sampler": "uniform", "aggregator": "mean",
    }.items()
}  # fmt: skip


def configuration(group: str, node: dict[str, Any]) -> Config:
    if group == "tracking":
        return Config(**PLAIN, tracking=TrackingConfig(sinks=node))
    return Config(**{**PLAIN, group: node})


def refusal(group: str, node: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is what each test looks at)
        refuse_misfits(configuration(group, node))
    return str(error.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_of_conf_is_taken_and_no_other(file: Path):
    group = file.parent.name
    node = factory(group, file.stem)
    refuse_misfits(configuration(group, node))
    if not node:  # devices=none
        return
    inner, name = (node[file.stem], f"{group}.{file.stem}") if group == "transforms" else (node, group)
    if group == "tracking":
        inner, name = node[file.stem], f"tracking.sinks.{file.stem}"
    inner["_unheard_of"] = 1
    line = refusal(group, node)
    assert line.startswith(f"unknown option '{name}._unheard_of'; ")
    assert all(key in line for key in inner if not key.startswith("_"))
    assert "\n" not in line


@pytest.mark.parametrize(
    ("group", "node", "line"),
    [
        ("algorithm", {"_target_": "fedsim.algorithms.fedprox", "proximal_wieght": 1.0},
         "unknown option 'algorithm.proximal_wieght'; did you mean algorithm.proximal_weight?"),
        ("aggregator", {"_target_": "fedsim.robust.krum", "memory_mb": 1},
         "unknown option 'aggregator.memory_mb'; did you mean aggregator.memory_mib?"),
        ("transforms", {"clip": {"_target_": "fedsim.transforms.clip", "max_nrm": 1}},
         "unknown option 'transforms.clip.max_nrm'; did you mean transforms.clip.max_norm?"),
        ("devices", {**factory("devices", "phones"), "latency": {"_target_": "fedsim.devices.Uniform", "hihg": 1}},
         "unknown option 'devices.latency.hihg'; did you mean devices.latency.high?"),
        ("model", {**PLAIN["model"], "num_classes": 3},
         "unknown option 'model.num_classes'; logistic takes no options"),
        ("trainer", {**PLAIN["trainer"], "seed": 3},
         "unknown option 'trainer.seed'; SerialTrainer takes precision, cuda_graphs"),
        ("model", {"_target_": "fedsim.models.mlp"},
         "fedsim.models.mlp is given input_shape and num_classes by the run, not by the configuration: add "
         "model._partial_=true"),
        ("model", {}, "model is no factory: it lacks a _target_, which model=NAME brings"),
        ("transforms", {"clip": 3},
         "transforms.clip is no factory: it lacks a _target_, which transforms=[NAME] brings"),
        ("data", {"_target_": "fedsim.data.leaf.read_leaf", "root": "x", "name": "x", "num_classes": 2},
         "these options need a value: data.input_shape"),
        ("model", {"_target_": "nowhere.model"},
         "model._target_=nowhere.model: there is no such function or class on PYTHONPATH"),
        ("model", {"_target_": "fedsim.models"},
         "model._target_=fedsim.models must be a function or a class, got a module"),
        ("algorithm", {"_target_": "fedsim.algorithms.fedprox", "proximal_weight": "high"},
         "algorithm.proximal_weight must be a number, got 'high'"),
        ("data", {**PLAIN["data"], "num_clients": 2.5}, "data.num_clients must be a whole number or null, got 2.5"),
        ("data", {**PLAIN["data"], "root": 5},
         "data.root must be text or null, got 5, which is no text unless quoted twice: \"data.root='5'\""),
        ("trainer", {**factory("trainer", "vectorized"), "factor": None},
         "trainer.factor must be true or false, got null"),
        ("model", {**factory("model", "mlp"), "hidden_sizes": [8, "x"]},
         "model.hidden_sizes must be a list of whole numbers ([...]), got [8, 'x']"),
        ("partition", {**factory("partition", "iid"), "holdout": 5},
         "partition.holdout must be a factory (_target_) of Holdout, got 5"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(group: str, node: dict[str, Any], line: str):
    assert refusal(group, node) == line


def test_a_module_that_fails_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_models.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = refusal("model", {"_target_": "broken_models.small", "_partial_": True})
    assert line.startswith("model._target_=broken_models.small cannot be imported: ")
    assert "no_such_library" in line


class Reads(Protocol):
    def read(self) -> int: ...


class Settings(TypedDict):
    size: int


@pytest.mark.parametrize(
    ("hint", "yes", "no"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [0, 2.5, float("inf")], [False, float("nan"), "1", None]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "a"], [1, None, True, ["a"]]),
        (Path, ["a"], [1]),
        (int | None, [None, 3], [2.5]),
        (Sequence[str], [[], ["a"], ("a",)], ["a", ["a", 1], None]),
        (Sequence[Sequence[int]], [[[1], []]], [[1]]),
        (str | Sequence[str], ["a", ["a"]], [[1]]),
        (Mapping[str, Any], [{"a": 1}], [[1], 3]),
        (Literal["a", "b"], ["a"], ["c"]),
        (Callable[[int], int] | None, [None, {"_target_": "x"}], [3, "x"]),
        (Reads, [{"_target_": "x"}], [3, "x", None]),
        (Settings, [{"size": 1}], [3]),
        (Any, [1, None, "a", [1]], []),
    ],
)
def test_which_values_are_of_a_type(hint: Any, yes: list[Any], no: list[Any]):
    assert all(fits(value, hint) for value in yes)
    assert not any(fits(value, hint) for value in no)


def tolerant(input_shape, num_classes, *args, depth: "Unknown" = 3, width=2, **rest):  # noqa: F821
    """A model of one's own, with types that cannot be read and names that cannot be known."""


def test_a_factory_that_says_nothing_of_its_options_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedsim.models.tolerant", tolerant, raising=False)
    node = {"_target_": "fedsim.models.tolerant", "_partial_": True, "depth": "deep", "width": "wide", "other": [1]}
    refuse_misfits(configuration("model", node))
