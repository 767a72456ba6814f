"""LEAF's JSON files, read one user at a time.

Caldas et al., "LEAF: A Benchmark for Federated Settings" (2018), keeps a split as a folder of files
{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}, some with a list
"hierarchies". A file is hundreds of megabytes and several times that as Python objects, so no file is ever
loaded whole: the bytes pass through a window that holds one user (`leaf_cursor`), whatever the order of the keys.
Nothing here knows what x and y mean, so that sets of images and of text can share this reader.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.data.leaf_cursor import AGAIN, Cursor, decoder

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeafUser:
    """The samples of one user in one split, as the JSON has them.

    Attributes:
        name: the user's name.
        file: where the user stands.
        x: the inputs, one a sample.
        y: the targets, as many as `x`.
        start, stop: bounds of the bytes in `file` that hold {"x": ..., "y": ...}, for `read_user`.
    """

    name: str
    file: Path
    x: list[Any]
    y: list[Any]
    start: int
    stop: int


def split_files(root: Path) -> dict[str, list[Path]]:
    """The JSON files of "train", "test" and, where there is one, "val", sorted by name, in `root` or `root/data`.

    Raises:
        FileNotFoundError: `root` is missing, or it lacks a split.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the LEAF folder {root} does not exist: set data.root to an existing folder")
    base = next((folder for folder in (root, root / "data") if (folder / "train").is_dir()), None)
    if base is None:
        raise FileNotFoundError(
            f"the LEAF folder {root} has neither train/ nor data/train/: set data.root to the folder that "
            "has one, or run LEAF's preprocess.sh with -t sample"
        )
    files = {split: sorted((base / split).glob("*.json")) for split in ("train", "test", "val")}
    if not files["val"]:
        del files["val"]
    for split, found in files.items():
        if not found:
            raise FileNotFoundError(f"no .json file in {base / split}: run LEAF's preprocess.sh with -t sample")
    return files


def read_split(files: Iterable[Path], groups: dict[str, str] | None = None) -> Iterator[LeafUser]:
    """The users of all `files` in turn.

    Args:
        files: of one split.
        groups: takes each user's group ("hierarchies"), where the files have them, once its file has been read.

    Raises:
        ValueError: as `read_file`, or a user stands in two files.
    """
    owners: dict[str, Path] = {}
    for file in files:
        for user in read_file(file, groups):
            if user.name in owners:
                raise ValueError(
                    f"user {user.name!r} stands in {owners[user.name]} and in {file}: remove one of the two "
                    "files, or merge the user's samples"
                )
            owners[user.name] = file
            yield user


def read_file(file: Path, groups: dict[str, str] | None = None, *, chunk_size: int = 1 << 20) -> Iterator[LeafUser]:
    """The users of one file, in its order, holding about one user's samples at a time.

    Args:
        file: a LEAF JSON file.
        groups: takes the users' groups at the end, if the file has them.
        chunk_size: bytes that are read at once.

    Raises:
        ValueError: the file is cut short or is not LEAF's JSON, or its lists disagree with its users. The
            lists may stand at the end, so this error may come after the last user.
    """
    sizes: dict[str, int] = {}
    lists: dict[str, Any] = {}
    found = False
    with file.open("rb") as stream:
        cursor = Cursor(stream, file, chunk_size)
        for key in cursor.members():
            if key != "user_data":
                value = cursor.value()
                if key in ("users", "num_samples", "hierarchies"):
                    lists[key] = value
                continue
            found = True
            for name in cursor.members():
                if name in sizes:
                    raise ValueError(f"{file}: user {name!r} stands in user_data twice: remove one")
                cursor.place = f" in user {name!r}"
                start = cursor.tell()
                record = cursor.value()
                user = _user(name, file, record, start, cursor.tell())
                cursor.place = ""
                sizes[name] = len(user.y)
                yield user
        cursor.finish()
    if not found:
        raise ValueError(f"{file} has no user_data, so it is not LEAF's: move it out of the folder, or {AGAIN}")
    hierarchies = lists.pop("hierarchies", None)
    _check_lists(file, sizes, **lists)
    if groups is not None and hierarchies is not None:
        groups.update(_groups(file, lists.get("users", list(sizes)), hierarchies))


def read_user(name: str, file: Path, start: int, stop: int) -> LeafUser:
    """The user whose record lies from byte `start` to `stop` of `file`, as `read_file` found it."""
    with file.open("rb") as stream:
        stream.seek(start)
        record = decoder().decode(stream.read(stop - start).decode())
    return _user(name, file, record, start, stop)


def _groups(file: Path, names: list[str], hierarchies: Any) -> dict[str, str]:
    """User to group; none of a file whose list is not one of its users."""
    if not isinstance(hierarchies, list) or len(hierarchies) != len(names):
        # LEAF's own split leaves users out of its lists and not out of this one
        _LOG.warning("%s: hierarchies is not a list of %d groups, one a user, and is left out", file, len(names))
        return {}
    texts = (group if isinstance(group, str) else json.dumps(group) for group in hierarchies)
    return dict(zip(names, texts, strict=True))


def _user(name: str, file: Path, record: Any, start: int, stop: int) -> LeafUser:
    x, y = (record.get("x"), record.get("y")) if isinstance(record, dict) else (None, None)
    if not isinstance(x, list) or not isinstance(y, list):
        raise ValueError(f'{file}: user {name!r} is not an object with lists "x" and "y": {AGAIN}')
    if len(x) != len(y):
        raise ValueError(f"{file}: user {name!r} has {len(x)} inputs (x) but {len(y)} targets (y): {AGAIN}")
    return LeafUser(name=name, file=file, x=x, y=y, start=start, stop=stop)


def _check_lists(file: Path, sizes: dict[str, int], users: Any = None, num_samples: Any = None) -> None:
    """Hold the lists "users" and "num_samples", where the file has them, against what user_data held."""
    names = list(sizes) if users is None else users
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{file}: "users" is not a list of names: {AGAIN}')
    listed = Counter(names)
    for name in [*listed, *sizes]:
        if listed[name] != 1 or name not in sizes:
            raise ValueError(
                f'{file}: user {name!r} is {listed[name]} times in "users" and {int(name in sizes)} times in '
                f"user_data: {AGAIN}"
            )
    if num_samples is None:
        return
    if not isinstance(num_samples, list) or len(num_samples) != len(names):
        raise ValueError(f"{file}: num_samples is not a list of {len(names)} numbers, one a user: {AGAIN}")
    for name, count in zip(names, num_samples, strict=True):
        if count != sizes[name]:
            raise ValueError(
                f"{file}: num_samples says {count} for user {name!r}, who has {sizes[name]} samples: {AGAIN}"
            )
