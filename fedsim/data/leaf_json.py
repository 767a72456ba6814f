"""LEAF's JSON files, read one user at a time.

Caldas et al., "LEAF: A Benchmark for Federated Settings" (2018), keeps a split as a folder of files
{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}, some with a list
"hierarchies". A file is hundreds of megabytes and several times that as Python objects, so no file is ever
loaded whole: the bytes pass through a window that holds one user, whatever the order of the keys. Nothing
here knows what x and y mean, so that sets of images and of text can share this reader.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_AGAIN = "copy the file again, or run LEAF's preprocess.sh again"
_NOT_SPACE = re.compile(rb"[^ \t\n\r]")
_SCALAR_END = re.compile(rb"[],} \t\n\r]")
_STRING_STOP = re.compile(rb'["\\]')
# In well-formed JSON both kinds of brackets balance, so the end of a value shows in its own kind alone, and
# the hundreds of lists inside a user's object cost nothing. Malformed JSON is left to the decoder.
_STOPS = {b"{": re.compile(rb'["{}]'), b"[": re.compile(rb'["\[\]]')}
_QUOTE = ord('"')
_OPENING = frozenset(b"{[")


class _Floats(dict[str, float]):
    """Text to float; the first few thousand are shared objects: 8 bytes a value in a list in place of 32.

    The pixels of an image have only 256 values, written out in 18 digits each.
    """

    def __missing__(self, text: str) -> float:
        value = float(text)
        if len(self) < 4096:
            self[text] = value
        return value


@dataclass(frozen=True, kw_only=True)
class LeafUser:
    """The samples of one user in one split, as the JSON has them.

    Attributes:
        name: the user's name.
        file: where the user stands.
        x: the inputs, one a sample.
        y: the targets, as many as `x`.
    """

    name: str
    file: Path
    x: list[Any]
    y: list[Any]


def split_files(root: Path) -> dict[str, list[Path]]:
    """The JSON files of "train" and "test", sorted by name, in `root` or in `root/data`.

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
    files = {split: sorted((base / split).glob("*.json")) for split in ("train", "test")}
    for split, found in files.items():
        if not found:
            raise FileNotFoundError(f"no .json file in {base / split}: run LEAF's preprocess.sh with -t sample")
    return files


def read_split(files: Iterable[Path]) -> Iterator[LeafUser]:
    """The users of all `files` in turn.

    Raises:
        ValueError: as `read_file`, or a user stands in two files.
    """
    owners: dict[str, Path] = {}
    for file in files:
        for user in read_file(file):
            if user.name in owners:
                raise ValueError(
                    f"user {user.name!r} stands in {owners[user.name]} and in {file}: remove one of the two "
                    "files, or merge the user's samples"
                )
            owners[user.name] = file
            yield user


def read_file(file: Path, *, chunk_size: int = 1 << 20) -> Iterator[LeafUser]:
    """The users of one file, in its order, holding about one user's samples at a time.

    Args:
        file: a LEAF JSON file.
        chunk_size: bytes that are read at once.

    Raises:
        ValueError: the file is cut short or is not LEAF's JSON, or its lists disagree with its users. The
            lists may stand at the end, so this error may come after the last user.
    """
    sizes: dict[str, int] = {}
    lists: dict[str, Any] = {}
    found = False
    with file.open("rb") as stream:
        cursor = _Cursor(stream, file, chunk_size)
        for key in cursor.members():
            if key != "user_data":
                value = cursor.value()
                if key in ("users", "num_samples"):
                    lists[key] = value
                continue
            found = True
            for name in cursor.members():
                if name in sizes:
                    raise ValueError(f"{file}: user {name!r} stands in user_data twice: remove one")
                cursor.place = f" in user {name!r}"
                user = _user(name, file, cursor.value())
                cursor.place = ""
                sizes[name] = len(user.y)
                yield user
        cursor.finish()
    if not found:
        raise ValueError(f"{file} has no user_data, so it is not LEAF's: move it out of the folder, or {_AGAIN}")
    _check_lists(file, sizes, **lists)


def _user(name: str, file: Path, record: Any) -> LeafUser:
    x, y = (record.get("x"), record.get("y")) if isinstance(record, dict) else (None, None)
    if not isinstance(x, list) or not isinstance(y, list):
        raise ValueError(f'{file}: user {name!r} is not an object with lists "x" and "y": {_AGAIN}')
    if len(x) != len(y):
        raise ValueError(f"{file}: user {name!r} has {len(x)} inputs (x) but {len(y)} targets (y): {_AGAIN}")
    return LeafUser(name=name, file=file, x=x, y=y)


def _check_lists(file: Path, sizes: dict[str, int], users: Any = None, num_samples: Any = None) -> None:
    """Hold the lists "users" and "num_samples", where the file has them, against what user_data held."""
    names = list(sizes) if users is None else users
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{file}: "users" is not a list of names: {_AGAIN}')
    listed = Counter(names)
    for name in [*listed, *sizes]:
        if listed[name] != 1 or name not in sizes:
            raise ValueError(
                f'{file}: user {name!r} is {listed[name]} times in "users" and {int(name in sizes)} times in '
                f"user_data: {_AGAIN}"
            )
    if num_samples is None:
        return
    if not isinstance(num_samples, list) or len(num_samples) != len(names):
        raise ValueError(f"{file}: num_samples is not a list of {len(names)} numbers, one a user: {_AGAIN}")
    for name, count in zip(names, num_samples, strict=True):
        if count != sizes[name]:
            raise ValueError(
                f"{file}: num_samples says {count} for user {name!r}, who has {sizes[name]} samples: {_AGAIN}"
            )


class _Cursor:
    """A place in a JSON file: a window of bytes that starts at the next unread one."""

    def __init__(self, stream: BinaryIO, file: Path, chunk_size: int) -> None:
        self.place = ""  # for messages: in which user the cursor stands
        self._stream, self._file, self._chunk_size = stream, file, chunk_size
        self._window = bytearray()
        self._start = 0  # of the window in the file
        self._decoder = json.JSONDecoder(parse_float=_Floats().__getitem__)

    def members(self) -> Iterator[str]:
        """The names in the object that starts here; whoever asks reads each value before the next name."""
        self._take(b"{")
        if self._peek() == b"}":
            self._take(b"}")
            return
        while True:
            if self._peek() != b'"':
                raise self._malformed(0, "a name in double quotes is expected")
            name = self.value()
            self._take(b":")
            yield name
            if self._take(b",", b"}") == b"}":
                return

    def value(self) -> Any:
        """The JSON value that starts here, whole."""
        first = self._peek()
        if first in _STOPS:
            end = self._balanced_end(_STOPS[first])
        elif first == b'"':
            end = self._string_end(0)
        else:
            end = self._find(_SCALAR_END, 0)
        try:
            text = self._window[:end].decode()
        except UnicodeDecodeError as error:
            raise self._malformed(error.start, error.reason) from None
        try:
            value = self._decoder.decode(text)
        except json.JSONDecodeError as error:
            raise self._malformed(len(text[: error.pos].encode()), error.msg) from None
        self._advance(end)
        return value

    def finish(self) -> None:
        """Check that nothing but white space is left."""
        if not self._at_end():
            raise self._malformed(0, "the file goes on after its end")

    def _balanced_end(self, stops: re.Pattern[bytes]) -> int:
        depth = position = 0
        while True:
            position = self._find(stops, position)
            byte = self._window[position]
            if byte == _QUOTE:
                position = self._string_end(position)
                continue
            depth += 1 if byte in _OPENING else -1
            position += 1
            if depth == 0:
                return position

    def _string_end(self, position: int) -> int:
        position += 1
        while self._window[position := self._find(_STRING_STOP, position)] != _QUOTE:
            position += 2  # a backslash and what it escapes
        return position + 1

    def _find(self, pattern: re.Pattern[bytes], position: int) -> int:
        while (match := pattern.search(self._window, position)) is None:
            position = max(position, len(self._window))  # an escape may reach over the window's end
            if not self._refill():
                raise self._cut_short()
        return match.start()

    def _at_end(self) -> bool:
        """Pass over white space; whether the file ends here."""
        while (match := _NOT_SPACE.search(self._window)) is None:
            self._advance(len(self._window))
            if not self._refill():
                return True
        self._advance(match.start())
        return False

    def _peek(self) -> bytes:
        if self._at_end():
            raise self._cut_short()
        return bytes(self._window[:1])

    def _take(self, *expected: bytes) -> bytes:
        found = self._peek()
        if found not in expected:
            raise self._malformed(0, f"{b' or '.join(expected).decode()} is expected")
        self._advance(1)
        return found

    def _advance(self, count: int) -> None:
        del self._window[:count]
        self._start += count

    def _refill(self) -> bool:
        block = self._stream.read(self._chunk_size)
        self._window += block
        return bool(block)

    def _cut_short(self) -> ValueError:
        end = self._start + len(self._window)
        return ValueError(f"{self._file} is cut short: it ends at byte {end}{self.place}: {_AGAIN}")

    def _malformed(self, position: int, reason: str) -> ValueError:
        byte = self._start + position
        return ValueError(f"{self._file} is not LEAF's JSON at byte {byte}{self.place} ({reason}): {_AGAIN}")
