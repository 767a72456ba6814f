"""The command line: composes the configuration, builds plain objects from it, and runs. Only this file sees a
DictConfig. Whatever a user can get wrong ends in one line and exit code 1; torch is imported only to run."""

import difflib
import importlib
import logging
import os
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsim.config import Config

log = logging.getLogger("fedsim")


def conf_dir() -> Path:
    """The folder conf/: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "conf"


def _schema() -> DictConfig:
    """The schema, writable: OmegaConf takes frozen dataclasses for read-only nodes, which no override could change."""

    def thaw(node: DictConfig) -> DictConfig:
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                thaw(child)
        return node

    return thaw(OmegaConf.structured(Config))


def _run_dir(resume: str | None, fresh: str) -> str:
    return fresh if resume is None else resume


def main() -> None:
    """`python -m fedsim`: run what the arguments describe."""
    ConfigStore.instance().store("schema", _schema())
    OmegaConf.register_new_resolver("fedsim_run_dir", _run_dir, replace=True)
    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the error becomes one line below
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_job)()
    except KeyboardInterrupt:
        print("fedsim: stopped; continue with checkpoint.resume=RUN_DIR", file=sys.stderr)
        sys.exit(130)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if debugging:
            raise
        print(f"fedsim: error: {_explain(error)}", file=sys.stderr)
        sys.exit(1)


def _job(cfg: DictConfig) -> float | None:
    """One run; returns its best test accuracy, for sweepers."""
    config = _validated(cfg)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportAssignmentType]
    directory = Path(HydraConfig.get().runtime.output_dir)

    from hydra.utils import instantiate

    checkpoint = importlib.import_module("fedsim.checkpoint")
    simulation_module = importlib.import_module("fedsim.simulation")
    summary_module = importlib.import_module("fedsim.tracking.summary")
    if config.checkpoint.resume is None and (directory / checkpoint.FILE).exists():
        raise ValueError(
            f"{directory} already holds a run; give another hydra.run.dir, or checkpoint.resume={directory}"
        )

    dataset = instantiate(config.data)
    for note in dataset.notes:
        log.warning(note)
    dataset = instantiate(config.partition)(dataset, config.seed)
    simulation = simulation_module.Simulation(
        dataset,
        instantiate(config.model),
        algorithm=instantiate(config.algorithm),
        local=config.local,
        server=config.server,
        evaluate=config.evaluate,
        sampler=instantiate(config.sampler),
        trainer=instantiate(config.trainer),
        seed=config.seed,
        device=config.device,
    )
    log.info(
        f"{config.name}: {dataset.name} ({dataset.source}), {dataset.num_clients:,} clients with "
        f"{dataset.train.num_samples:,} samples; {simulation.model.num_parameters:,} parameters; "
        f"{type(simulation.trainer).__name__} on {simulation.model.device}; writing to {directory}"
    )
    directory.mkdir(parents=True, exist_ok=True)
    summary = simulation_module.record(
        simulation,
        directory,
        config=plain,
        evaluate=config.evaluate,
        tracking=config.tracking,
        checkpoint=config.checkpoint,
        about={"name": config.name, "config_hash": summary_module.config_hash(checkpoint.comparable(plain))},
        sinks={name: instantiate(sink) for name, sink in config.tracking.sinks.items()},
    )
    final = summary["final"]
    outcome = f", test accuracy {final['test_accuracy']:.1%}" if "test_accuracy" in final else ""
    log.info(f"{summary['rounds']} rounds, train loss {final['train_loss']:.3f}{outcome}; {directory / 'summary.json'}")
    return summary.get("best", {}).get("test_accuracy")


def _validated(cfg: DictConfig) -> Config:
    """The configuration as frozen dataclasses; a key that no dataclass knows is refused."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ValueError(f"these options need a value: {', '.join(sorted(missing))}")

    def check(node: DictConfig, schema: type, prefix: str) -> None:
        known = {f.name: f.type for f in fields(schema)}
        for key in node:
            if key not in known:
                raise ValueError(_unknown(prefix + str(key), [prefix + name for name in known]))
            kind = known[str(key)]
            if isinstance(kind, type) and is_dataclass(kind):
                check(node[key], kind, f"{prefix}{key}.")

    check(cfg, Config, "")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "see python -m fedsim --cfg job"
    return f"unknown option {key!r}; {hint}"


def _explain(error: BaseException) -> str:
    """One line for an error of the configuration or of its use."""
    text = str(error)
    if match := re.search(r"Could not override '([^']*)'", text):
        return _unknown(match[1], _known_keys())
    if match := re.search(
        r"Could not find '([^']*)/([^']*)'\s+Available options in '[^']*':((?:\s+\S+)*?)\s+Config", text
    ):
        group, choice, options = match[1], match[2], match[3].split()
        near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(choice, options, n=1))
        return f"{group}={choice} does not exist; {near}there is {', '.join(options)}"
    cause = error.__cause__
    if isinstance(error, HydraException) and cause is not None:
        inner = str(cause).splitlines()[0]
        key = re.search(r"full_key: (\S+)", text + str(cause))
        if key and key[1] not in inner:
            return f"{key[1]}: {inner}"
        return inner
    key = re.search(r"full_key: (\S+)", text)
    first = text.splitlines()[0] if text else type(error).__name__
    return f"{key[1]}: {first}" if key else " ".join(text.split())


def _known_keys() -> list[str]:
    """Every option of the configuration with the groups and experiment that the command line chose."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        groups = [a for a in sys.argv[1:] if re.fullmatch(r"\+?[a-z_/]+=[A-Za-z0-9_]+", a)]
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
