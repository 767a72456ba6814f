"""Hydra's flags (--config-dir, -m, --help ...) among the arguments of a command."""

import sys
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.object_type import ObjectType


def refuse_unknown() -> None:
    """Of --experiment Hydra makes --experimental-rerun, and other options with dashes it answers with its usage."""
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    for name in (text.partition("=")[0] for text in sys.argv[1:]):
        if name == "--experiment" or (name.startswith("--") and not any(flag.startswith(name) for flag in flags)):
            raise ValueError(f"there is no {name}: options have no dashes, +experiment=NAME local.learning_rate=0.1")


def stand_last() -> None:
    """Options may stand on both sides of a flag: Hydra takes them only from one, and answers with its usage."""
    rest = sys.argv[1:]
    options: list[str] = get_args_parser().parse_intermixed_args(rest).overrides
    for option in options:
        rest.remove(option)
    sys.argv[1:] = [*options, *rest]


def list_groups_at_once() -> None:
    """For --help Hydra copies all that it knows of configurations for every group that it lists, more than a second."""

    def options(
        loader: Any, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG, *_: object
    ) -> list[str]:
        return loader.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = options  # pyright: ignore[reportAttributeAccessIssue]
