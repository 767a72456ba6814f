"""A link to one peer: messages out of a queue, messages into another, heartbeats between them.

Two threads serve a link. The writer sends what is in the outbox, and a heartbeat when there has been nothing for a
quarter of `timeout`; the reader delivers what arrives. Both work while the node's main thread trains, so silence for
`timeout` seconds means that the peer has stopped, or that the way to it is broken. What ends a link is delivered too,
once, as `Lost`.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

from fedsim.transport.wire import Message, Wire, WireError

_CLOSE, _LAST = object(), object()
_ABORT_TAG = 1
_LINGER = 2.0  # seconds that the peer has to close first, so that the last message is not lost with the connection


@dataclass(frozen=True)
class Lost:
    """The end of a link, with the reason."""

    reason: str


class GlooPair:
    """A process group of two: this node and one peer. The death of another peer does not touch it.

    Args:
        store: where both find each other.
        rank: 0 for the parent, which the child connects to; 1 for the child.
        device: the local address to speak from (`gloo_device`).
        timeout: seconds that each send and receive may take.
        meeting: seconds to find each other.

    Raises:
        RuntimeError: the peer did not come in time.
    """

    def __init__(self, store: Store, rank: int, device: object, timeout: float, meeting: float) -> None:
        self.peer, self.timeout = 1 - rank, timedelta(seconds=timeout)
        options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
        options._timeout, options._devices = timedelta(seconds=meeting), [device]
        self.group: Any = ProcessGroupGloo(store, rank, 2, options)  # pyright: ignore[reportArgumentType]

    def send(self, tensor: Tensor) -> None:
        self.group.send([tensor], self.peer, 0).wait(self.timeout)

    def receive(self, tensor: Tensor) -> None:
        self.group.recv([tensor], self.peer, 0).wait(self.timeout)

    def abort(self) -> None:
        """Close the connection under whatever is waiting on it: a receive that times out has this effect."""
        try:
            self.group.recv([torch.empty(1)], self.peer, _ABORT_TAG).wait(timedelta(milliseconds=1))
        except RuntimeError:
            return


def gloo_device(host: str) -> object:
    """A place in the network for gloo: `host` is an address of this machine that the peers reach."""
    return ProcessGroupGloo.create_device(hostname=host)  # pyright: ignore[reportAttributeAccessIssue]


class Link:
    """A peer that can be written to at any time, and whose messages arrive in a queue.

    Args:
        pair: the connection; `timeout` seconds of silence end it.
        name: of the peer, for the log.
        limit: bytes of tensors that a message may bring.
        key: that nobody but this node and the peer has, for the codes of the messages.
    """

    def __init__(self, pair: GlooPair, *, name: str, key: bytes, limit: int = 0) -> None:
        self.pair, self.name = pair, name
        self.wire = Wire(pair, limit=limit, key=key, ways=(bytes([1 - pair.peer]), bytes([pair.peer])))
        self.beat = pair.timeout.total_seconds() / 4
        self.inbox: queue.Queue[Message | Lost] = queue.Queue()
        self.outbox: queue.Queue[Message | object] = queue.Queue()
        self.deliver: Callable[[Message | Lost], None] = self.inbox.put
        self.lock = threading.Lock()
        self.lost = False
        self.threads = [threading.Thread(target=f, daemon=True, name=name) for f in (self._read, self._write)]
        for thread in self.threads:
            thread.start()

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        return self.wire.bytes_sent, self.wire.bytes_received

    def send(self, message: Message) -> None:
        """Send when the messages before have gone; whether it arrives shows in what comes back."""
        self.outbox.put(message)

    def receive(self, seconds: float | None = None) -> Message | Lost | None:
        """Wait for the next message; None if there is none within `seconds`."""
        try:
            return self.inbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def route(self, deliver: Callable[[Message | Lost], None]) -> None:
        """From now on call `deliver` from the reader's thread, beginning with what already waits in the inbox."""
        with self.lock:
            while not self.inbox.empty():
                deliver(self.inbox.get())
            self.deliver = deliver

    def close(self, last: Message | None = None) -> None:
        """Send what is waiting and `last`, then end the link; returns at once."""
        if last is not None:
            self.outbox.put(last)
            self.outbox.put(_LAST)
        self.outbox.put(_CLOSE)

    def abort(self) -> None:
        """End the link now, whatever is under way."""
        self.outbox.put(_CLOSE)
        self.pair.abort()

    def join(self, seconds: float = _LINGER) -> None:
        """Wait until the link has ended, at most so long: a process must not exit while its threads are inside gloo."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _put(self, item: Message | Lost) -> None:
        with self.lock:
            if not self.lost:
                self.lost = isinstance(item, Lost)
                self.deliver(item)

    def _read(self) -> None:
        try:
            while True:
                message = self.wire.receive()
                if message is not None:
                    self._put(message)
                del message  # it may be large, and the next one a long time off
        except (RuntimeError, WireError) as error:
            self._put(Lost(_reason(error)))
        self.outbox.put(_CLOSE)
        self.pair.abort()

    def _write(self) -> None:
        try:
            while True:
                try:
                    item = self.outbox.get(timeout=self.beat)
                except queue.Empty:
                    item = None
                if item is _CLOSE:
                    break
                if item is _LAST:
                    self.threads[0].join(_LINGER)
                    break
                assert item is None or isinstance(item, Message)
                self.wire.send(item)
                del item
        except RuntimeError as error:
            self._put(Lost(_reason(error)))
        self.pair.abort()


def _reason(error: Exception) -> str:
    """One short line, for gloo's errors name source files and addresses."""
    text = str(error)
    if "Timed out" in text or "Application timeout" in text:
        return "it has been silent for too long"
    if "closed by peer" in text or "reset by peer" in text or "Broken pipe" in text:
        return "its connection was closed"
    return text.splitlines()[0][:200] if text else type(error).__name__
