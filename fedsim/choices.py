"""A part chosen on the command line in the place of an experiment's comes without what the experiment says of its own.

`+experiment=fcube model=logistic`: the experiment sets `model.hidden_sizes`, which a linear model does not have. Hydra
merges the two, so that the part would be given an option that it does not know. Options that both have (say
`partition.num_clients`) keep the experiment's value.
"""

from collections.abc import Callable, Iterator

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

_OVERLAYS = ("experiment", "sweep")  # they set options of other groups, and are not parts themselves


def keep_own_options(cfg: DictConfig, note: Callable[[str], None]) -> None:
    """Remove from `cfg`, in place, what an experiment sets for parts that the command line has replaced.

    Args:
        cfg: a job's configuration, composed by Hydra.
        note: called with a line for each part that lost options.

    Raises:
        ValueError: the command line itself sets such an option, and not with a plus sign, which adds one's own.
    """
    hydra = HydraConfig.get()
    task = list(hydra.overrides.task)
    groups = {key.partition("@")[0] for key in hydra.runtime.choices}
    parsed = list(zip(task, OverridesParser.create().parse_overrides(task), strict=True))
    overlays = [text for text, override in parsed if override.key_or_group in _OVERLAYS]
    chosen = {text: o for text, o in parsed if text not in overlays and o.key_or_group in groups}
    if not overlays or not chosen:
        return
    loader = GlobalHydra.instance().config_loader()
    own = loader.load_configuration(hydra.job.config_name, list(chosen), RunMode.RUN)
    given = {o.key_or_group: o.is_add() or o.is_force_add() for text, o in parsed if text not in [*chosen, *overlays]}
    for override in chosen.values():
        package = override.package or override.key_or_group.replace("/", ".")
        name = package.partition(".")[0]
        theirs, ours = cfg.get(name), own.get(name)
        if not isinstance(theirs, DictConfig) or not isinstance(ours, DictConfig):
            continue
        removed = []
        for key, parent, full in list(_foreign(theirs, ours, f"{name}.")):
            added = [add for option, add in given.items() if option == full or option.startswith(full + ".")]
            if not all(added):
                raise ValueError(f"{override.input_line} has no option {full}")
            if not added:
                with open_dict(parent):
                    del parent[key]
                removed.append(full)
        if removed:
            note(
                f"{override.input_line} has no option {' or '.join(removed)}, which {' '.join(overlays)} sets for "
                "another choice: left out"
            )


def _foreign(theirs: DictConfig, ours: DictConfig, prefix: str) -> Iterator[tuple[str, DictConfig, str]]:
    """The options of `theirs` that `ours` has not: each one's key, what holds it, and its full name."""
    for key in [str(key) for key in theirs]:
        child, own = theirs._get_node(key), ours._get_node(key, validate_access=False)
        if own is None:
            yield key, theirs, prefix + key
        elif isinstance(child, DictConfig) and isinstance(own, DictConfig) and not (child._is_none() or own._is_none()):
            yield from _foreign(child, own, f"{prefix}{key}.")
