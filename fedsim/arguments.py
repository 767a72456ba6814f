"""Whether the options of each `_target_` factory are ones that it takes, before anything is built.

Hydra's schema knows the sections of settings; of a factory only its signature tells. The names, and the values wherever
the signature has types that can stand in a configuration, are held against it here: a mistake in the model is told
before the data are read. Values that are of the right type and still wrong are the factory's own to refuse.
"""

import collections.abc
import difflib
import inspect
import math
import pydoc
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from fedsim.config import Config

# Arguments that the run itself gives to a factory with `_partial_: true`: so many in order, and these by name.
_GIVEN: dict[str, tuple[int, tuple[str, ...]]] = {
    "model": (2, ()),
    "partition": (2, ()),
    "sampler": (2, ()),
    "devices": (3, ()),
    "trainer": (4, ("seed", "uplink", "sum_dtype", "data", "gradient")),
    "tracking.sinks": (1, ()),
}
_GROUPS = ("data", "partition", "model", "algorithm", "trainer", "sampler", "aggregator")
_MAY_BE_NONE = ("devices", "attack", "objective")
_HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
}


def refuse_misfits(config: Config) -> None:
    """Refuse options that a factory of the configuration does not take, lacks, or cannot use for their type.

    Raises:
        ValueError: names the option.
    """
    parts = {group: getattr(config, group) for group in (*_GROUPS, *_MAY_BE_NONE)}
    parts |= {f"transforms.{name}": transform for name, transform in config.transforms.items()}
    parts |= {f"tracking.sinks.{name}": sink for name, sink in config.tracking.sinks.items()}
    for name, part in parts.items():
        if name in _MAY_BE_NONE and not part:
            continue
        if not isinstance(part, Mapping) or "_target_" not in part:
            group = name.partition(".")[0]
            choice = f"{group}=[NAME]" if group in ("transforms", "tracking") else f"{group}=NAME"
            raise ValueError(f"{name} is no factory: it lacks a _target_, which {choice} brings")
        _check(part, name, _GIVEN.get("tracking.sinks" if name.startswith("tracking.") else name))


def _check(node: Any, name: str, given: tuple[int, tuple[str, ...]] | None = None) -> None:
    """Check a factory, those inside of it, and whatever a list or a dictionary holds of them."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_factory(node, name, given)
        for key, value in node.items():
            _check(value, f"{name}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check(value, f"{name}[{i}]")


def _check_factory(node: Mapping[str, Any], name: str, given: tuple[int, tuple[str, ...]] | None) -> None:
    target = _locate(node["_target_"], name)
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError, SyntaxError):  # types that are imported for a type checker alone
        signature = inspect.signature(target)
    except ValueError:  # written in C, without a signature
        return
    partial, parameters = bool(node.get("_partial_")), signature.parameters.values()
    first = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_run = [*first[: given[0]], *given[1]] if given is not None else []
    options = {option.name: option for option in _options(signature) if not (partial and option.name in by_run)}
    takes_any = any(p.kind == p.VAR_KEYWORD and _unpacked(p) is None for p in parameters)
    for key, value in node.items():
        if key in options:
            _check_value(value, options[key], f"{name}.{key}")
        elif key not in _HYDRAS and not takes_any:
            near = difflib.get_close_matches(key, options, n=3, cutoff=0.6)
            takes = f"{node['_target_'].rpartition('.')[2]} takes {', '.join(options) or 'no options'}"
            hint = f"did you mean {' or '.join(f'{name}.{option}' for option in near)}?" if near else takes
            raise ValueError(f"unknown option {f'{name}.{key}'!r}; {hint}")
    lacking = [key for key, option in options.items() if option.default is option.empty and key not in node]
    if not lacking or "_args_" in node or (partial and given is None):  # whoever calls it may give the others
        return
    if given is not None and not partial and set(lacking) & set(by_run):
        raise ValueError(
            f"{node['_target_']} is given {' and '.join(lacking)} by the run, not by the configuration: add "
            f"{name}._partial_=true"
        )
    raise ValueError(f"these options need a value: {', '.join(f'{name}.{key}' for key in lacking)}")


def _locate(target: Any, name: str) -> Callable[..., Any]:
    try:
        found = pydoc.locate(str(target))
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"{name}._target_={target} cannot be imported: {error.exc}: {error.value}") from error
    if found is None:
        raise ValueError(f"{name}._target_={target}: there is no such function or class on PYTHONPATH")
    if not callable(found):
        raise ValueError(f"{name}._target_={target} must be a function or a class, got a {type(found).__name__}")
    return found


def _unpacked(parameter: inspect.Parameter) -> Any:
    """The TypedDict of `**options: Unpack[Options]`; None: another annotation."""
    return get_args(parameter.annotation)[0] if get_origin(parameter.annotation) is Unpack else None


def _options(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    """What may be given by name."""
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield parameter
        elif parameter.kind == parameter.VAR_KEYWORD and (more := _unpacked(parameter)) is not None:
            for name, hint in get_type_hints(more).items():
                yield inspect.Parameter(name, parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _check_value(value: Any, option: inspect.Parameter, name: str) -> None:
    hint = option.annotation
    if hint is option.empty or isinstance(hint, str) or value == option.default or fits(value, hint):
        return
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, int | float) and fits("", hint):
        shown += f", which is no text unless quoted twice: \"{name}='{shown}'\""
    raise ValueError(f"{name} must be {' or '.join(_words(hint))}, got {shown}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value of a configuration is of the type `hint`; where it is a factory, or cannot be told, it is.

    A whole number is a number; NaN, a truth value or text is none, and text is no list.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    if hint in (str, Path):
        return isinstance(value, str)
    kind = origin or hint
    if kind in (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, list, tuple):
        each = inner[0] if inner else Any
        return isinstance(value, Sequence) and not isinstance(value, str) and all(fits(one, each) for one in value)
    try:
        return kind is Any or not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # of a Protocol, or of a TypedDict
        return isinstance(value, Mapping) and kind.__base__ is dict


def _words(hint: Any, several: bool = False) -> Iterator[str]:
    """The types that may be given as plain values, null last."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for one in sorted(inner, key=lambda one: one is type(None)):
            yield from _words(one, several)
    elif origin is Literal:
        yield from map(str, inner)
    elif hint in _WORDS:
        yield _WORDS[hint][several]
    elif (origin or hint) in (collections.abc.Sequence, list, tuple):
        each = f" of {' or '.join(_words(inner[0], True))}" if inner else ""
        yield f"lists{each}" if several else f"a list{each} ([...])"
    else:
        yield f"a factory (_target_) of {getattr(hint, '__name__', hint)}"
