"""Messages between two nodes: a header of int64, JSON, raw tensors. Nothing that arrives is ever unpickled.

A message is, in this order: eight int64 (a magic number, the version of the protocol, the bytes of the JSON, of the
small tensors and of all tensors, the number of messages sent before on this pair, and in two a code); the JSON, with
the kind, the fields, and name, dtype and shape of each tensor, and behind it the bytes of the small tensors; the bytes
of the others. A header without JSON is a heartbeat. Small tensors go with the JSON because each thing that gloo sends
wakes four threads on its way; large ones travel in pieces, so that "nothing has moved for so many seconds" means the
same for a model of any size. The code is 16 bytes of an HMAC-SHA256, with a key of this pair alone, over the direction,
the six numbers, the JSON and the small tensors: nobody else can say anything, or change or repeat what was said, but
for the bytes of large tensors, which it does not cover. Numbers are in the byte order of the machine: nodes of
different byte order misread the magic number and part.
"""

import hmac
import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

PROTOCOL = 3
_MAGIC = 0x6D_69_73_64_65_66  # "fedsim", little end first
_NUMBERS = struct.Struct("=6q")
_CODE = 16  # bytes
_MAX_JSON = 1 << 24
_SMALL = 1 << 16  # bytes of a tensor that travels with the JSON, at most
_PIECE = 1 << 23
_DTYPES = {
    name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")
}


class WireError(Exception):
    """What arrived is not a message, or is larger than allowed."""


class Pair(Protocol):
    """Two nodes with an ordered stream each way. Both calls wait, and raise RuntimeError when the peer is gone."""

    def send(self, tensor: Tensor) -> None:
        """Send a contiguous CPU tensor."""
        ...

    def receive(self, tensor: Tensor) -> None:
        """Fill a contiguous CPU tensor with what the peer sends next, which must be as long."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Message:
    """What one node tells another.

    Attributes:
        kind: what it is about, for example "job".
        fields: values that JSON can hold; floats arrive bit for bit.
        tensors: by name; they arrive as CPU tensors.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Wire:
    """Writes and reads messages on a pair. One thread may send while another receives.

    Args:
        pair: the peer.
        limit: bytes of tensors that a message may bring; it may be raised later.
        key: of the codes of all messages.
        ways: mark of what is sent, and of what is received: those of the peer are the other way round.
    """

    def __init__(self, pair: Pair, *, limit: int = 0, key: bytes = b"", ways: tuple[bytes, bytes] = (b"", b"")) -> None:
        self.pair, self.limit, self.key, self.ways = pair, limit, key, ways
        self.sent = self.received = 0  # messages
        self.bytes_sent = self.bytes_received = 0

    def _send(self, tensor: Tensor) -> None:
        self.pair.send(tensor)
        self.bytes_sent += tensor.nbytes

    def _receive(self, tensor: Tensor) -> Tensor:
        self.pair.receive(tensor)
        self.bytes_received += tensor.nbytes
        return tensor

    def send(self, message: Message | None) -> None:
        """Send a message; None is a heartbeat.

        Raises:
            RuntimeError: the peer is gone.
        """
        text, tensors, small = b"", [], []
        if message is not None:
            tensors = [t.detach().cpu().contiguous() for t in message.tensors.values()]
            about = [
                [name, str(t.dtype).removeprefix("torch."), list(t.shape)]
                for name, t in zip(message.tensors, tensors, strict=True)
            ]
            text = json.dumps({"kind": message.kind, "fields": message.fields, "tensors": about}).encode()
            assert len(text) <= _MAX_JSON, "large values travel as tensors"
            small = [_bytes(t).numpy().tobytes() for t in tensors if 0 < t.nbytes <= _SMALL]
        sizes = len(text), sum(map(len, small)), sum(t.nbytes for t in tensors)
        numbers, body = _NUMBERS.pack(_MAGIC, PROTOCOL, *sizes, self.sent), bytearray().join([text, *small])
        code = _code(self.key, self.ways[0], numbers, body)
        self._send(torch.frombuffer(bytearray(numbers + code), dtype=torch.int64))
        self.sent += 1
        if text:
            self._send(torch.frombuffer(body, dtype=torch.uint8))
        for tensor in tensors:
            if tensor.nbytes > _SMALL:
                for piece in _bytes(tensor).split(_PIECE):
                    self._send(piece)

    def receive(self) -> Message | None:
        """Wait for the next message; None is a heartbeat.

        Raises:
            WireError: what came is no message of this protocol, or too large; nothing of its size was allocated.
            RuntimeError: the peer is gone, or has been silent for too long.
        """
        header = self._receive(torch.empty((_NUMBERS.size + _CODE) // 8, dtype=torch.int64)).numpy().tobytes()
        numbers, code = header[: _NUMBERS.size], header[_NUMBERS.size :]
        magic, protocol, num_json, num_small, num_bytes, number = _NUMBERS.unpack(numbers)
        if magic != _MAGIC:
            raise WireError("the header is not one of fedsim")
        if protocol != PROTOCOL:
            raise WireError(f"protocol version {protocol}, this node speaks {PROTOCOL}")
        if number != self.received:
            raise WireError(f"message {number} came where message {self.received} was due")
        if not 0 <= num_json <= _MAX_JSON or not 0 <= num_small <= num_bytes <= self.limit:
            raise WireError(
                f"a message of {num_json} bytes of JSON and {num_bytes} bytes of tensors, "
                f"{_MAX_JSON} and {self.limit} are allowed"
            )
        self.received += 1
        if not num_json and num_bytes:
            raise WireError("tensors without a description")
        body = torch.empty(num_json + num_small, dtype=torch.uint8)
        if num_json:
            self._receive(body)
        if not hmac.compare_digest(code, _code(self.key, self.ways[1], numbers, body.numpy().tobytes())):
            raise WireError("a message is not from this peer, or was changed on its way")
        if not num_json:
            return None
        kind, fields, described = _parse(body[:num_json].numpy().tobytes(), num_small, num_bytes)
        tensors, begin = {}, num_json
        for name, dtype, shape in described:
            tensors[name] = tensor = torch.empty(shape, dtype=dtype)
            if tensor.nbytes > _SMALL:
                for piece in _bytes(tensor).split(_PIECE):
                    self._receive(piece)
            elif tensor.nbytes:
                _bytes(tensor).copy_(body[begin : begin + tensor.nbytes])
                begin += tensor.nbytes
        return Message(kind=kind, fields=fields, tensors=tensors)


def _code(key: bytes, way: bytes, numbers: bytes, body: bytes | bytearray) -> bytes:
    return hmac.digest(key, way + numbers + body, "sha256")[:_CODE]


def _bytes(tensor: Tensor) -> Tensor:
    """View of the bytes of a contiguous tensor that has any."""
    return tensor.view(-1).view(torch.uint8)


def _parse(
    text: bytes, num_small: int, num_bytes: int
) -> tuple[str, dict[str, Any], list[tuple[str, torch.dtype, list[int]]]]:
    """Kind, fields, and (name, dtype, shape) of each tensor of a message with so many bytes of tensors."""
    try:
        about = json.loads(text)
        kind, fields = about["kind"], about["fields"]
        described = [(name, _DTYPES[dtype], shape) for name, dtype, shape in about["tensors"]]
        if not isinstance(kind, str) or not isinstance(fields, dict):
            raise WireError("a message needs a kind and fields")
        small = total = 0
        for name, dtype, shape in described:
            if not isinstance(name, str) or not isinstance(shape, list) or len(shape) > 8:
                raise WireError("a tensor is described wrongly")
            if not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
                raise WireError(f"tensor {name!r} has the impossible shape {shape}")
            size = math.prod(shape) * dtype.itemsize
            small, total = small + size * (size <= _SMALL), total + size
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"the description of a message is damaged ({type(error).__name__})") from None
    if (small, total) != (num_small, num_bytes):
        raise WireError(
            f"the tensors of {kind!r} are described with {total} bytes, {small} of them in small ones; the header says "
            f"{num_bytes} and {num_small}"
        )
    return kind, fields, described
