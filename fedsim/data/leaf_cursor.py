"""A place in a JSON file that is read value by value, through a window of bytes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

AGAIN = "copy the file again, or run LEAF's preprocess.sh again"
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


def decoder() -> json.JSONDecoder:
    """A decoder that shares equal floats."""
    return json.JSONDecoder(parse_float=_Floats().__getitem__)


class Cursor:
    """A place in a JSON file: a window of bytes that starts at the next unread one."""

    def __init__(self, stream: BinaryIO, file: Path, chunk_size: int) -> None:
        self.place = ""  # for messages: in which user the cursor stands
        self._stream, self._file, self._chunk_size = stream, file, chunk_size
        self._window = bytearray()
        self._start = 0  # of the window in the file
        self._decoder = decoder()

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

    def tell(self) -> int:
        """Byte in the file where the next value starts, or where the file ends."""
        self._at_end()
        return self._start

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
        return ValueError(f"{self._file} is cut short: it ends at byte {end}{self.place}: {AGAIN}")

    def _malformed(self, position: int, reason: str) -> ValueError:
        byte = self._start + position
        return ValueError(f"{self._file} is not LEAF's JSON at byte {byte}{self.place} ({reason}): {AGAIN}")
