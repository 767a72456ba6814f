"""What is composed from conf/ and the command line: the schema, and a configuration as plain, checked objects.

With `cli`, the only place that sees a DictConfig.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from fedsim.arguments import refuse_misfits
from fedsim.config import Config
from fedsim.explain import unknown
from fedsim.files import CHECKPOINT


def conf_dir() -> Path:
    """The folder conf/: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "conf"


def schema() -> DictConfig:
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
    """Where a run writes. Refused here, before Hydra makes a directory of a name that was mistyped."""
    if resume is not None and not (Path(resume) / CHECKPOINT).is_file():
        raise ValueError(
            f"checkpoint.resume={resume}: no {CHECKPOINT} there; give the directory of a run that wrote one"
        )
    return fresh if resume is None else resume


def _sweep_dir(resume: str | None, fresh: str) -> str:
    if resume is not None and not Path(resume).is_dir():
        raise ValueError(f"checkpoint.resume={resume}: no such folder; give the folder of the sweep to continue")
    return fresh if resume is None else resume


# Here and not in main, for the processes of a launcher import the command line and never call main.
ConfigStore.instance().store("schema", schema())
OmegaConf.register_new_resolver("fedsim_run_dir", _run_dir, replace=True)
OmegaConf.register_new_resolver("fedsim_sweep_dir", _sweep_dir, replace=True)


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """The configuration with all that it refers to, as dictionaries, lists and plain values."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportAssignmentType]
    return plain


def validated(cfg: DictConfig) -> Config:
    """The configuration as frozen dataclasses; a key that no dataclass and no factory knows is refused."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ValueError(f"these options need a value: {', '.join(sorted(missing))}")

    def check(node: DictConfig, schema: type, prefix: str) -> None:
        known = {f.name: f.type for f in fields(schema)}
        for key in node:
            if key not in known:
                raise ValueError(unknown(prefix + str(key), [prefix + name for name in known]))
            kind = known[str(key)]
            if isinstance(kind, type) and is_dataclass(kind):
                check(node[key], kind, f"{prefix}{key}.")

    check(cfg, Config, "")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    refuse_misfits(config)
    return config
