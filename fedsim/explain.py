"""What a mistake on the command line means, in one line: which option, what is wrong, and what was meant."""

import difflib
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig

# Hydra's plugins, which are found only where they are installed, and the extras that bring them.
_PLUGINS = {
    ("hydra/launcher", "joblib"): "sweep", ("hydra/sweeper", "optuna"): "sweep",
    ("hydra/launcher", "submitit_slurm"): "slurm", ("hydra/launcher", "submitit_local"): "slurm",
}  # fmt: skip
# Groups that are not chosen unless asked for.
_EXTRA_GROUPS = ("experiment", "sweep")


def unknown(key: str, known: Iterable[str]) -> str:
    """The line for an option that does not exist, with the names that are near."""
    if key in _EXTRA_GROUPS:
        given = next((text.partition("=")[2] for text in sys.argv if text.startswith(f"{key}=")), "NAME")
        return f"{key} is chosen with a plus sign: +{key}={given}"
    names = [name for name in known if not name.rpartition(".")[2].startswith("_")]  # _target_ is no user's
    near = _shortened(key, names) or difflib.get_close_matches(key, [*names, *_EXTRA_GROUPS], n=3, cutoff=0.6)
    parent = key.rpartition(".")[0]
    inside = [name.removeprefix(f"{parent}.") for name in names if parent and name.rpartition(".")[0] == parent]
    hint = "see python -m fedsim --cfg job"
    if near and near != [parent]:
        hint = f"did you mean {' or '.join(f'+{n}=NAME' if n in _EXTRA_GROUPS else n for n in near if n != parent)}?"
    elif inside:
        hint = f"{parent} has {', '.join(inside)}"
    return f"unknown option {key!r}; {hint}"


def _shortened(key: str, names: Iterable[str]) -> list[str]:
    """The options that `key` is short for: lr or local.lr for local.learning_rate, epochs for local.num_epochs."""
    parent, _, short = key.rpartition(".")
    found = []
    for name in names:
        where, _, last = name.rpartition(".")
        initials = "".join(word[0] for word in last.split("_"))
        if (parent in ("", where)) and where and (short == initials != last or last in (short, f"num_{short}")):
            found.append(name)
    return found[:3]


def explain(error: BaseException, conf: Path) -> str:
    """One line for an error of the configuration or of its use.

    Args:
        error: what was raised.
        conf: the folder of the configuration, from which names are guessed.
    """
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        at = error.problem_mark
        return f"{at.name}, line {at.line + 1}, is no YAML: {error.problem} (column {at.column + 1})"
    if match := re.search(r"Could not override '([^']*)'", text):
        return unknown(match[1], known_keys(conf))
    if match := re.search(
        r"Could not find '([^']*)/([^']*)'\s+Available options in '[^']*':((?:\s+\S+)*?)\s+Config", text
    ):
        return _unknown_choice(match[1], match[2], match[3].split())
    if match := re.search(r"Could not load '([^']*)/([^']*)'", text):
        return _unknown_choice(match[1], match[2], _options(conf, match[1]))
    if match := re.search(r"Ambiguous value for argument '([^=]*)=([^']*)'", text):
        return (
            f"{match[1]}={match[2]} is several values: a run for each is a sweep, python -m fedsim -m ...; "
            f"one list is {match[1]}=[{match[2]}]"
        )
    if match := re.search(r"Error parsing override '([^'=]*)'\s+missing EQUAL", text):
        return f"{match[1]!r} is no option: options are NAME=VALUE, and an experiment is chosen with +experiment=NAME"
    if match := re.search(r"Multiple values for ([a-z_/]+)\.", text):
        return f"{match[1]} is given twice: a run has one, given as {'+' * (match[1] in _EXTRA_GROUPS)}{match[1]}=NAME"
    if "Config group override must be a string" in text:
        for group, choice in re.findall(r"^([a-z_/]+)=(.*)$", "\n".join(sys.argv[1:]), re.MULTILINE):
            if (options := _options(conf, group)) and choice not in options and not choice.startswith("["):
                return _unknown_choice(group, choice, options)
    if match := re.search(r"ValueError raised while resolving interpolation: (.*)", text):
        return match[1]
    cause = error.__cause__
    if isinstance(error, HydraException) and cause is not None:
        inner = _of_another_type(str(cause).splitlines()[0])
        if match := re.search(r"ValueError raised while resolving interpolation: (.*)", inner):
            return match[1]
        key = re.search(r"full_key: (\S+)", f"{text}\n{cause}")
        return _told_of(key and key[1], inner)
    key = re.search(r"full_key: (\S+)", text)
    first = _of_another_type(text.splitlines()[0]) if text else type(error).__name__
    return _told_of(key[1], first) if key else " ".join(text.split())


def where(error: BaseException) -> str:
    """ " (KIND in FILE, line N)" where a part of the user's own has raised the error; else nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    ours, libraries = Path(__file__).parent, (*site.getsitepackages(), sysconfig.get_path("stdlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if ours in Path(frame.filename).parents:
            return ""
        if not frame.filename.startswith(("<", *libraries)):
            return f" ({type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _told_of(key: str | None, line: str) -> str:
    if key is None or key in line:
        return line
    return f"{key} {line}" if line.startswith("must be ") else f"{key}: {line}"


def _of_another_type(line: str) -> str:
    """OmegaConf's words for a value of a wrong type, in ours."""
    match = re.fullmatch(r"Value (.*) of type '[^']*' could not be converted to (Float|Integer|Boolean)", line)
    if match is None:
        return line
    what = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}[match[2]]
    return f"must be {what}, got {match[1]}"


def _options(conf: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def _unknown_choice(group: str, choice: str, options: list[str]) -> str:
    if (group, choice) in _PLUGINS:
        return f"{group}={choice} needs Hydra's plugin: pip install '.[{_PLUGINS[group, choice]}]' in fedsim's folder"
    near = difflib.get_close_matches(choice, options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    if group in ("attack", "objective") and choice == "null":
        hint = f"~{group} leaves it out; "
    return f"{group}={choice} does not exist; {hint}there is {', '.join(options)}"


def known_keys(conf: Path) -> list[str]:
    """Every option of the configuration with the groups and experiment that the command line chose."""
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        groups = [a for a in sys.argv[1:] if re.fullmatch(r"\+?[a-z_/]+=([A-Za-z0-9_]+|\[[a-z_,]+\])", a)]
        for overrides in (groups, []):
            try:
                cfg = hydra.compose("config", overrides)
                break
            except HydraException:
                continue
        else:
            return []

    def walk(node: DictConfig, prefix: str) -> list[str]:
        found = []
        for key in node:
            found.append(f"{prefix}{key}")
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                found += walk(child, f"{prefix}{key}.")
        return found

    return walk(cfg, "")
