"""Plays in plain text: roles become clients, and what they say becomes windows of characters, split in time.

LEAF (Caldas et al. 2018) makes its Shakespeare so: the speeches of a role are one text, sample i is the 80 characters
from place i on with the character behind them as target, the first samples are for training, and testing starts 79
samples later, so that no target of testing has been seen in training. Roles too short for both are left out.

A speech starts with its role: a line with `Name:` alone behind an empty line, or `NAME.` or `NAME:` in capitals at the
start of a line, with or without words behind it. Stage directions in square brackets are left out.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.deal.base import offsets_of
from fedsim.data.leaf_pack import growing
from fedsim.data.text import encode_characters

WINDOW = 80

_ALONE = re.compile(r"([A-Z][\w'\u2019.\- ]{0,39}):$")
_CAPITALS = re.compile(r"([A-Z][A-Z'\u2019\- ]{1,39})[.:](?:\s+(.*))?$")
_HEADINGS = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE|FINIS|THE END)\b", re.IGNORECASE)
_DIRECTIONS = re.compile(r"\[[^\]]*\]")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True)
class Role:
    """All that one role says in one play."""

    play: str
    name: str
    text: str


def read_play(text: str, play: str) -> list[Role]:
    """The roles of one play, in the order of their first speech, with their speeches joined by spaces."""
    speeches: dict[str, list[str]] = {}
    speaker, after_space = None, True
    for line in _DIRECTIONS.sub(" ", text).splitlines():
        line = line.strip()
        alone = _ALONE.match(line) if after_space else None
        start = alone or _CAPITALS.match(line)
        after_space = not line
        if start is not None and not _HEADINGS.match(line):
            speaker = _SPACES.sub(" ", start[1]).upper()
            line = "" if alone else start[2] or ""
        elif _HEADINGS.match(line) and line == line.upper():
            speaker = None
        if speaker is not None and line:
            speeches.setdefault(speaker, []).append(line)
    return [
        Role(play=play, name=name, text=_SPACES.sub(" ", " ".join(lines)).strip()) for name, lines in speeches.items()
    ]


def read_plays(path: Path) -> list[Role]:
    """The roles of the play in the file `path`, or of all .txt files in that folder; a play's name is its file's.

    Raises:
        ValueError: no file, no UTF-8 text, or no roles.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    roles = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from None
        found = read_play(text, file.stem)
        if not found:
            raise ValueError(
                f"{file} has no roles: a speech starts with a line NAME: alone behind an empty line, or with NAME. in "
                "capitals"
            )
        roles += found
    if not roles:
        raise ValueError(f"no .txt file in {path}: set data.root to a play in plain text or a folder of plays")
    return roles


def split_in_time(num_samples: int, train_fraction: Fraction, window: int) -> tuple[int, int]:
    """How many windows, from the first on, are for training, and where testing starts, window - 1 later.

    Testing starts at `num_samples` or beyond where nothing is left for it.
    """
    num_train = max(1, floor(train_fraction * num_samples))
    return num_train, num_train + window - 1


def pack_roles(roles: list[Role], folder: Path, train_fraction: Fraction) -> dict[str, Any]:
    """Write `{train,test}_{inputs,targets,offsets}.npy` of the roles that are long enough, as `leaf_pack.pack` does.

    Returns:
        "users", "groups", "left_out", "unknown": characters for which a space stands.

    Raises:
        ValueError: no role is long enough.
    """
    users: list[str] = []
    groups: list[str] = []
    sizes: dict[str, list[int]] = {"train": [], "test": []}
    unknown = 0
    with (
        growing(folder / "train_inputs.npy", np.uint8, (WINDOW,)) as train_inputs,
        growing(folder / "train_targets.npy", np.int64, ()) as train_targets,
        growing(folder / "test_inputs.npy", np.uint8, (WINDOW,)) as test_inputs,
        growing(folder / "test_targets.npy", np.int64, ()) as test_targets,
    ):
        for role in roles:
            tokens, not_known = encode_characters(role.text)
            num_samples = len(tokens) - WINDOW
            num_train, start = split_in_time(num_samples, train_fraction, WINDOW)
            if start >= num_samples:
                continue
            unknown += not_known
            windows = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW)[:-1]
            train_inputs(windows[:num_train])
            train_targets(tokens[WINDOW : WINDOW + num_train].astype(np.int64))
            test_inputs(windows[start:])
            test_targets(tokens[WINDOW + start :].astype(np.int64))
            users.append(f"{role.play}_{role.name}".replace(" ", "_"))
            groups.append(role.play)
            sizes["train"].append(num_train)
            sizes["test"].append(num_samples - start)
    if not users:
        longest = max(len(role.text) for role in roles)
        raise ValueError(
            f"none of {len(roles)} roles is long enough to train and test on: the longest says {longest} characters, "
            f"and with data.test_fraction={float(1 - train_fraction):g} a role needs more than "
            f"{WINDOW + floor((WINDOW - 1) / (1 - train_fraction))}"
        )
    for split, counts in sizes.items():
        np.save(folder / f"{split}_offsets.npy", offsets_of(counts))
    return {"users": users, "groups": groups, "left_out": len(roles) - len(users), "unknown": unknown}
