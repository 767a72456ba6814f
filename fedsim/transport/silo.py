"""Where the processes of a silo meet, and how those that nobody has started are started (`fedsim.train.silo`).

They meet at a TCPStore: torchrun's, or one on loopback of the first process, which then starts the others as torchrun
would. The first process leaves the configuration there and the others build the data and the model from it. What they
leave for each other is signed with the shared secret of the run; what a silo exchanges afterwards is not.
"""

import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, TCPStore

from fedsim.data.federated import FederatedDataset
from fedsim.train.group import Group, SiloBroken
from fedsim.train.silo import Silo, serve
from fedsim.transport.join import listen, split_address
from fedsim.transport.launch import Nodes
from fedsim.transport.link import gloo_device
from fedsim.transport.place import Seat
from fedsim.vector import FlatModel

_POLL = 0.05
_CONNECT = timedelta(seconds=60)


class _Board:
    """Signed notes in a store, under names that need the secret."""

    def __init__(self, store: Store, secret: bytes, run: str) -> None:
        self.secret, self.run = secret, run
        self.store = PrefixStore(self._sign(b"name"), store)

    def _sign(self, text: bytes) -> str:
        return hmac.new(self.secret, b"silo " + self.run.encode() + b" " + text, hashlib.sha256).hexdigest()

    def leave(self, key: str, note: dict[str, Any]) -> None:
        text = json.dumps({**note, "key": key})
        self.store.set(key, self._sign(text.encode()) + text)

    def find(self, key: str) -> dict[str, Any] | None:
        """None where there is none yet."""
        try:
            if not self.store.check([key]):
                return None
            found = self.store.get(key)
        except RuntimeError:
            raise SiloBroken("the processes of this silo have lost each other: start it again") from None
        signature, text = found[:64], found[64:]
        if not hmac.compare_digest(signature, self._sign(text).encode()):
            raise SiloBroken("a note in the store of this silo is not signed with its secret")
        note = json.loads(text)
        if note["key"] != key:
            raise SiloBroken("a note in the store of this silo is not what it was signed for")
        return note


def lead(
    silo: Silo,
    seat: Seat | None,
    *,
    config: dict[str, Any],
    about: dict[str, str],
    secret: bytes,
    join_seconds: float,
    device: str,
    name: str,
    directory: Path,
) -> tuple[Group, Callable[[], None]]:
    """Be the first process of a silo: wait for the others, which are started here if nobody has (`seat` is None).

    Args:
        silo: settings.
        seat: of this process, as torchrun has given it.
        config: resolved, for the others to build data and model from.
        about: of the data and the model, which must be equal in all of them.
        secret: shared by all.
        join_seconds: how long the others may take to be ready.
        device: of those that are started here, unless the silo names theirs.
        name: of this node; those that are started print into a file NAME_rankR.log of `directory`.

    Returns:
        The group, and what ends those that were started here.

    Raises:
        ValueError: not all came, or one has other data or another model.
    """
    count = silo.count(None if seat is None else seat.size)
    nodes: Nodes | None = None
    if seat is None:
        with listen("127.0.0.1:0") as listener:
            port = listener.getsockname()[1]
            store = TCPStore(
                "127.0.0.1", port, None, True, _CONNECT, wait_for_workers=False, master_listen_fd=listener.detach()
            )
        seat = Seat(rank=0, size=count, local_rank=0, address=f"127.0.0.1:{port}", alone=True, run="silo")
        threads = max(1, torch.get_num_threads() // count)
        torch.set_num_threads(threads)
        settings = ["trainer=silo", f"transport.join_seconds={join_seconds}"]
        nodes = Nodes(directory, secret=secret, settings=settings, device=device, num_workers=count)
        for rank in range(1, count):
            nodes.start_member(f"{name}_rank{rank}", seat.other(rank), threads)
    else:
        store = _connect(seat)
    end = (lambda: None) if nodes is None else nodes.end
    try:
        board = _Board(store, secret, seat.run)
        board.leave("config", {"config": config})
        _await_ready(board, count, about, join_seconds, nodes)
        return _meet(board, seat, silo.timeout), end
    except BaseException:
        end()
        raise


def follow(
    seat: Seat,
    *,
    secret: bytes,
    build: Callable[[dict[str, Any]], tuple[Silo, FederatedDataset, FlatModel, dict[str, str]]],
) -> None:
    """Be another process of a silo, until the first one ends it, whenever that is ready.

    Args:
        seat: of this process.
        secret: as for `lead`.
        build: configuration -> the silo's settings, data and model, and what is to be compared of them.

    Raises:
        SiloBroken: another process is gone.
        ValueError: data or model cannot be built here.
    """
    board = _Board(_connect(seat), secret, seat.run)
    while (note := board.find("config")) is None:
        time.sleep(_POLL)
    if note["config"] is None:
        return
    key = f"ready/{seat.rank}"
    try:
        silo, dataset, model, about = build(note["config"])
    except (ValueError, OSError) as error:
        board.leave(key, {"failed": str(error)})
        raise
    board.leave(key, {"about": about})
    serve(_meet(board, seat, silo.timeout), model, dataset)


def dismiss(seat: Seat, secret: bytes) -> None:
    """As the first process: tell the others that nothing came of it, if they are still waiting."""
    board = _Board(_connect(seat), secret, seat.run)
    if board.find("config") is None:
        board.leave("config", {"config": None})


def _connect(seat: Seat) -> Store:
    host, port = split_address(seat.address)
    try:
        return TCPStore(host, port, None, False, _CONNECT, wait_for_workers=False)
    except RuntimeError:
        raise SiloBroken(f"nobody answers at {seat.address}, where the processes of this silo meet") from None


def _await_ready(board: _Board, count: int, about: dict[str, str], seconds: float, nodes: Nodes | None) -> None:
    missing, deadline = set(range(1, count)), time.monotonic() + seconds
    while missing:
        for rank in sorted(missing):
            note = board.find(f"ready/{rank}")
            if note is None:
                continue
            if "failed" in note:
                raise ValueError(f"process {rank} of this silo cannot work: {note['failed']}")
            differing = [what for what, value in about.items() if note["about"].get(what) != value]
            if differing:
                raise ValueError(
                    f"process {rank} of this silo has another {' and '.join(differing)} than the first one: give all "
                    "of them the same files and the same version of fedsim"
                )
            missing.remove(rank)
        if nodes is not None and missing and (failures := nodes.failures()):
            raise ValueError(f"not all processes of this silo could be started: {failures[0]}")
        if missing and time.monotonic() > deadline:
            raise ValueError(f"processes {sorted(missing)} of this silo were not ready within {seconds:g} s")
        time.sleep(_POLL if missing else 0.0)


def _meet(board: _Board, seat: Seat, timeout: float) -> Group:
    host, port = split_address(seat.address)
    if seat.alone:
        local = "127.0.0.1"
    else:
        with socket.create_connection((host, port), _CONNECT.total_seconds()) as probe:
            local = probe.getsockname()[0]
    store = PrefixStore("group", board.store)
    return Group(store, seat.rank, seat.size, device=gloo_device(local), timeout=timeout)
