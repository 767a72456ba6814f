"""Messages: what goes in comes out bit for bit, and what is not a message is refused before anything is allocated."""

import hmac
import json
import math
import struct
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.transport.wire import _MAGIC, PROTOCOL, Message, Wire, WireError


class Tape:
    """A pair that hears what it said; `spoil` changes the pieces on their way."""

    def __init__(self) -> None:
        self.pieces: deque[Tensor] = deque()

    def send(self, tensor: Tensor) -> None:
        self.pieces.append(tensor.clone())

    def receive(self, tensor: Tensor) -> None:
        if not self.pieces:
            raise RuntimeError("Connection closed by peer")
        piece = self.pieces.popleft()
        if piece.nbytes != tensor.nbytes:
            raise RuntimeError("lengths differ")
        tensor.view(torch.uint8).copy_(piece.view(torch.uint8))


def tensors() -> st.SearchStrategy[Tensor]:
    shapes = st.lists(st.integers(0, 4), max_size=3)
    dtypes = st.sampled_from([torch.float64, torch.float32, torch.int64, torch.uint8, torch.bfloat16])
    return st.builds(lambda s, d: torch.randint(0, 255, s).to(d) if s else torch.tensor(7).to(d), shapes, dtypes)


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(max_size=20)
)


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=10),
    st.dictionaries(st.text(max_size=5), values, max_size=4),
    st.dictionaries(st.text(max_size=5), tensors(), max_size=3),
)
def test_a_message_arrives_as_it_was_sent(kind, fields, named):
    wire = Wire(Tape(), limit=1 << 20)
    wire.send(None)
    wire.send(Message(kind=kind, fields=fields, tensors=named))
    assert wire.receive() is None
    got = wire.receive()
    assert got is not None
    assert (got.kind, got.fields) == (kind, fields)
    assert list(got.tensors) == list(named)
    for name, tensor in named.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)
    assert wire.bytes_sent == wire.bytes_received


def test_large_tensors_travel_in_pieces_and_nan_keeps_its_bits():
    tape = Tape()
    wire = Wire(tape, limit=1 << 25)
    big = torch.arange(3_000_001, dtype=torch.int64)
    odd = torch.tensor([math.nan, -0.0, math.inf], dtype=torch.float32)
    wire.send(Message(kind="x", tensors={"big": big, "odd": odd}))
    assert len(tape.pieces) == 2 + 3  # header; JSON and the small one; 24 MB in pieces of 8 MiB
    got = wire.receive()
    assert got is not None
    assert torch.equal(got.tensors["big"], big)
    assert torch.equal(got.tensors["odd"].view(torch.int32), odd.view(torch.int32))


def header(
    *, magic=_MAGIC, protocol=PROTOCOL, num_json=0, num_small=0, num_bytes=0, number=0, body=b"", key=b""
) -> Tensor:
    numbers = struct.pack("=6q", magic, protocol, num_json, num_small, num_bytes, number)
    code = hmac.digest(key, numbers + body, "sha256")[:16]
    return torch.frombuffer(bytearray(numbers + code), dtype=torch.int64)


BAD_HEADERS = {
    "random": (torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), "not one of fedsim"),
    "version": (header(protocol=99), "protocol version 99, this node speaks 3"),
    "out of order": (header(number=3), "message 3 came where message 0 was due"),
    "huge JSON": (header(num_json=1 << 60), "are allowed"),
    "huge tensors": (header(num_json=2, num_bytes=1 << 60), "are allowed"),
    "negative": (header(num_json=-1), "are allowed"),
    "more in small tensors than in all": (header(num_json=2, num_small=9, num_bytes=8), "are allowed"),
    "bytes of nothing": (header(num_bytes=8), "without a description"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_refused(name):
    tape = Tape()
    tape.send(BAD_HEADERS[name][0])
    with pytest.raises(WireError, match=BAD_HEADERS[name][1]):
        Wire(tape, limit=100).receive()


GOOD = {"kind": "x", "fields": {}, "tensors": [["a", "float32", [2]]]}
BAD_JSON = {
    "not JSON": b"\xff{",
    "a list": b"[]",
    "no kind": json.dumps({**GOOD, "kind": 3}).encode(),
    "no fields": json.dumps({**GOOD, "fields": []}).encode(),
    "unknown dtype": json.dumps({**GOOD, "tensors": [["a", "object", [2]]]}).encode(),
    "negative shape": json.dumps({**GOOD, "tensors": [["a", "float32", [-2]], ["b", "float32", [4]]]}).encode(),
    "huge shape of nothing": json.dumps({**GOOD, "tensors": [["a", "float32", [1 << 62, 0]]]}).encode(),
    "huge product": json.dumps({**GOOD, "tensors": [["a", "float32", [1 << 30, 1 << 30, 1 << 30]]]}).encode(),
    "boolean shape": json.dumps({**GOOD, "tensors": [["a", "float32", [True, 2]]]}).encode(),
    "fewer bytes": json.dumps({**GOOD, "tensors": [["a", "float32", [1]]]}).encode(),
    "too deep": b"[" * 100_000,
    "small ones that are large": json.dumps({**GOOD, "tensors": [["a", "uint8", [1 << 17]]]}).encode(),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_bad_description_is_refused(name):
    tape, text = Tape(), BAD_JSON[name]
    size = 1 << 17 if name == "small ones that are large" else 8
    tape.send(header(num_json=len(text), num_small=size, num_bytes=size, body=text + bytes(size)))
    tape.send(torch.frombuffer(bytearray(text + bytes(size)), dtype=torch.uint8))
    with pytest.raises(WireError, match=r"descri|kind and fields|impossible shape"):
        Wire(tape, limit=1 << 18).receive()


def test_a_message_that_was_changed_or_is_not_the_peers_is_refused():
    """Any bit of the code, the numbers, the JSON and the small tensors; another key; and its own words sent back."""
    message = Message(kind="x", fields={"a": 1}, tensors={"small": torch.arange(4)})

    def said() -> Tape:
        tape = Tape()
        Wire(tape, key=b"k", ways=(b"0", b"1")).send(message)
        return tape

    def heard(tape: Tape, key=b"k", ways=(b"1", b"0")) -> Message | None:
        return Wire(tape, limit=100, key=key, ways=ways).receive()

    assert heard(said()).fields == {"a": 1}
    for key, ways in ((b"l", (b"1", b"0")), (b"", (b"1", b"0")), (b"k", (b"0", b"1"))):
        with pytest.raises(WireError, match="not from this peer, or was changed"):
            heard(said(), key, ways)
    for piece in range(2):
        for place in range(said().pieces[piece].nbytes):
            tape = said()
            tape.pieces[piece].view(torch.uint8)[place] ^= 1
            with pytest.raises((WireError, RuntimeError)):
                heard(tape)
    beat = Tape()
    beat.send(header(key=b"l"))
    with pytest.raises(WireError, match="not from this peer"):
        heard(beat)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4))
def test_a_message_cut_short_is_a_lost_peer(keep):
    tape = Tape()
    wire = Wire(tape, limit=1 << 20)
    large = {name: torch.ones(20_000) for name in ("a", "b", "c")}
    wire.send(Message(kind="x", tensors={**large, "d": torch.ones(1)}))
    assert len(tape.pieces) == 5
    while len(tape.pieces) > keep:
        tape.pieces.pop()
    with pytest.raises(RuntimeError, match="closed by peer"):
        wire.receive()
