"""Shakespeare: the next character of what a role says, from LEAF's files, plays in plain text, or a made-up play.

McMahan et al. (2017) made it of the Complete Works; LEAF (Caldas et al. 2018) keeps 660 roles, windows of 80
characters, and a vocabulary of 80 characters.
"""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from fedsim.data.cache import cache_root, key_of, packed
from fedsim.data.federated import FederatedDataset
from fedsim.data.leaf import keep_clients, leaf_folder, open_leaf, packed_split
from fedsim.data.leaf_pack import FORMAT
from fedsim.data.leaf_text import CharacterWindows
from fedsim.data.plays import Role, pack_roles, read_play, read_plays
from fedsim.data.stand_in_play import stand_in_play
from fedsim.data.text import CHARACTERS, Tokens

_SOURCES = ("auto", "leaf", "plays", "stand_in")
_NUM_ROLES = 100
_TEST_FRACTION = 0.2
_STAND_IN = (
    "shakespeare is a made-up play from a small grammar, not Shakespeare, so its accuracies do not compare with "
    "published ones; for the real one set data.root to a folder with LEAF's shakespeare train/ and test/, or to plays "
    "in plain text"
)


def shakespeare(
    *,
    root: str | None = None,
    source: str = "auto",
    num_clients: int | None = None,
    seed: int = 0,
    test_fraction: float = _TEST_FRACTION,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """Shakespeare, one client a role: inputs (N, 80) uint8 tokens, targets (N,) int64 in [0, 80), groups the plays.

    Tokens are places in LEAF's 80 characters; for others a space stands.

    Args:
        root: folder of LEAF's files (train/ and test/ in it, or in its data/, shakespeare/ or shakespeare/data/); or
            a play in plain text, or a folder of plays (*.txt).
        source: "leaf"; "plays"; "stand_in", the made-up play; or "auto": what `root` holds, the made-up play without.
        num_clients: roles to keep: a seeded draw without replacement, of the made-up play the first. None is all:
            of the made-up play 100.
        seed: of that draw, and of the made-up play.
        test_fraction: of each role's samples, the last ones in time; LEAF's files are split already.
        cache_dir: folder of the packed arrays; None is `.fedsim/` in LEAF's folder, or the cache root.

    Raises:
        FileNotFoundError: `root` holds neither.
        ValueError: an argument is out of range, or a file is damaged.
    """
    if source not in _SOURCES:
        raise ValueError(f"data.source={source!r} is unknown: set it to one of {', '.join(_SOURCES)}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"data.test_fraction must be between 0 and 1, got {test_fraction}")
    if source in ("leaf", "plays") and root is None:
        raise ValueError(f"data.source={source} needs data.root=<folder with LEAF's shakespeare, or plays>")
    train_fraction = 1 - Fraction(str(test_fraction))
    if source == "stand_in" or root is None:
        roles = read_play(stand_in_play(_NUM_ROLES if num_clients is None else num_clients, seed), "stand_in")
        notes = (_STAND_IN,) if root is None else (_STAND_IN, f"data.root={root} is ignored: data.source=stand_in")
        dataset = _from_roles(roles, train_fraction, cache_dir, source="stand_in")
        return replace(dataset, notes=(*notes, *dataset.notes))
    path = Path(root).expanduser()
    if source == "plays" or (source == "auto" and _holds_plays(path)):
        if not path.exists():
            raise FileNotFoundError(f"data.root={root} does not exist: set it to a play in plain text")
        dataset = _from_roles(read_plays(path), train_fraction, cache_dir, source="plays")
        return dataset if num_clients is None else keep_clients(dataset, num_clients, seed)
    folder = leaf_folder(path, "shakespeare", " or to plays in plain text, or leave it out for the made-up play")
    recipe = CharacterWindows()
    dataset, facts = open_leaf(
        folder,
        recipe,
        name="shakespeare",
        num_classes=len(CHARACTERS),
        num_clients=num_clients,
        seed=seed,
        cache_dir=cache_dir,
    )
    notes = [*dataset.notes, *_unknown(facts["unknown"])]
    if test_fraction != _TEST_FRACTION:
        notes.append(f"data.test_fraction={test_fraction} is ignored: LEAF's files are split already")
    return replace(dataset, preprocess=Tokens(vocabulary=tuple(CHARACTERS)), notes=tuple(notes))


def _holds_plays(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.glob("*.txt")))


def _from_roles(roles: list[Role], train_fraction: Fraction, cache_dir: str | None, *, source: str) -> FederatedDataset:
    content = [FORMAT, str(train_fraction), [(role.play, role.name, role.text) for role in roles]]
    folder = cache_root(cache_dir) / "plays" / key_of(content)
    arrays, meta = packed(folder, lambda folder: pack_roles(roles, folder, train_fraction))
    notes = _unknown(meta["unknown"])
    if meta["left_out"]:
        few = f"{meta['left_out']} of {len(roles)} roles say too little to train and test on and are left out"
        notes = [few, *notes]
    return FederatedDataset(
        name="shakespeare",
        train=packed_split(arrays, "train"),
        test=packed_split(arrays, "test"),
        client_ids=meta["users"],
        groups=meta["groups"],
        num_classes=len(CHARACTERS),
        preprocess=Tokens(vocabulary=tuple(CHARACTERS)),
        source=source,
        notes=tuple(notes),
    )


def _unknown(count: int) -> list[str]:
    return [f"for {count} characters outside LEAF's {len(CHARACTERS)} a space stands"] if count else []
