"""How a node joins its parent: a shared secret, proved both ways over the parent's TCPStore, then a pair of their own.

The parent owns a TCPStore. A child draws a ticket and leaves a nonce; the parent leaves one too; each proves with an
HMAC-SHA256 over the ticket and both nonces that it knows the secret, the child first. Only then do they meet in a
process group of two. A stranger who reads the store's keys could meet one of them there in the other's place; so every
message has a code with a key that also needs the secret (`fedsim.transport.wire`). The secret itself never travels.
Nothing is encrypted, and large tensors are not signed: docs/deployment.md.
"""

import hashlib
import hmac
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from fedsim.transport.link import GlooPair, Link, gloo_device
from fedsim.transport.secret import SECRET
from fedsim.transport.wire import PROTOCOL, Message

log = logging.getLogger("fedsim")

_MAX_NOTE = 4096  # bytes of what an unknown node may leave
_AT_ONCE = 16  # handshakes
_POLL = 0.02
_AGAIN = 1.0  # seconds until the door is tried again when it has failed
_MANY = 1024  # nodes that may be waiting at the door; more tickets than that were not drawn one by one
_MIN_STEP = 10.0  # seconds for a step of the handshake, at least: a node that has just started may be busy
_STEPS = 3  # steps that may take as long, before the parent is given up


class Refused(ValueError):
    """The parent does not want this node; trying again would not help."""


class Unreachable(ConnectionError):
    """There is no parent at this address, or it does not answer; it may come (back) later."""


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" or "[v6]:port" in two.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"transport: {address!r} is not an address; write HOST:PORT")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """A listening socket at HOST:PORT (port 0: any that is free).

    Raises:
        ValueError: the address is not one of this machine, is in use, or is a wildcard.
    """
    host, port = split_address(address)
    if host in ("0.0.0.0", "::", "*"):
        raise ValueError(
            f"transport: {address} stands for all addresses; give the one under which workers reach this node"
        )
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restarted server takes its port again
        listener.bind(where)
        listener.listen(1024)
    except OSError as error:
        raise ValueError(
            f"transport: cannot listen at {address} ({error.strerror or error}); give another address"
        ) from None
    return listener


def _step(timeout: float) -> float:
    """Seconds for a step of the handshake."""
    return max(timeout, _MIN_STEP)


def _proof(secret: bytes, what: str, ticket: int, ours: str, theirs: str) -> str:
    return hmac.new(secret, f"{what} {ticket} {ours} {theirs}".encode(), hashlib.sha256).hexdigest()


def _get(store: Store, key: str) -> dict[str, Any]:
    text = store.get(key)
    found = json.loads(text) if len(text) <= _MAX_NOTE else None
    if not isinstance(found, dict):
        raise ValueError(f"{key} is damaged")
    return found


class Door:
    """The parent's side: listens, and calls `welcome` for every node that knows the secret.

    Args:
        listener: a listening socket (`listen`), which the door takes over.
        secret: shared by all nodes of the run.
        timeout: seconds of silence after which a peer counts as gone.
        welcome: called with a link and what the child said about itself, in a thread of its own.

    Attributes:
        address: HOST:PORT where it listens.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        secret: bytes,
        timeout: float,
        welcome: Callable[[Link, dict[str, Any]], None],
    ) -> None:
        self.secret, self.timeout, self.welcome = secret, timeout, welcome
        self.host, self.port = listener.getsockname()[:2]
        self.address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        self.device = gloo_device(self.host)
        self.store = TCPStore(
            self.host, self.port, None, True, self._within, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self.tickets = self.store.clone()
        self.admitted = 0  # tickets
        self.trouble: str | None = None  # that was told last
        self.open = True
        self.free = threading.Semaphore(_AT_ONCE)
        self.threads = [threading.Thread(target=self._watch, daemon=True, name="door")]
        self.threads[0].start()

    @property
    def _within(self) -> timedelta:
        return timedelta(seconds=_step(self.timeout))

    def close(self) -> None:
        """Let nobody in any more, and give the port back."""
        self.open = False
        self.threads[0].join()
        del self.tickets, self.store  # handshakes under way fail now
        for thread in self.threads:
            thread.join(1.0)

    def _watch(self) -> None:
        while self.open:
            try:
                self._let_in()
                pause = _POLL
            except (RuntimeError, OSError) as error:  # for example no file descriptors left
                self._tell(f"nodes cannot join now ({' '.join(str(error).split())[:160]})")
                pause = _AGAIN
            time.sleep(pause)

    def _tell(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning(trouble)
            self.trouble = trouble

    def _let_in(self) -> None:
        """Begin a handshake with everybody who has drawn a ticket."""
        try:
            last = self.tickets.add("tickets", 0)
        except RuntimeError:  # it is no number any more
            last = -1
        if not self.admitted <= last <= self.admitted + _MANY:
            self._tell(f"somebody who has not joined has spoilt the list of nodes that wait at {self.address}")
            self.tickets = self.store.clone()
            self.admitted += 1 << 32  # no number twice: two nodes with one ticket would take each other for strangers
            self.tickets.set("tickets", str(self.admitted))  # who waits for an answer to another ticket draws again
            return
        while self.admitted < last <= self.admitted + _MANY and self.open:
            if not self.free.acquire(timeout=_POLL):
                continue
            try:
                thread = threading.Thread(target=self._serve, args=(self.store.clone(), self.admitted + 1), daemon=True)
                thread.start()
            except (RuntimeError, OSError):
                self.free.release()
                raise
            self.admitted += 1
            self.threads = [t for t in self.threads if t.is_alive()] + [thread]

    def _serve(self, store: Store, ticket: int) -> None:
        try:
            link, about = self._admit(store, ticket)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            if self.open:
                reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
                told = reason if isinstance(error, Refused) else f"it broke off the handshake ({reason})"
                log.warning(f"refused a node at the door: {told}")
            return
        finally:
            self.free.release()
        self.welcome(link, about)

    def _admit(self, store: Store, ticket: int) -> tuple[Link, dict[str, Any]]:
        store.set_timeout(self._within)
        key, ours = f"{ticket}/", secrets.token_hex(16)
        about = _get(store, key + "hello")
        theirs = str(about["nonce"])[:64]
        store.set(key + "challenge", json.dumps({"nonce": ours}))
        proved = str(_get(store, key + "proof")["proof"])
        refusal = None
        if not hmac.compare_digest(proved, _proof(self.secret, "child", ticket, theirs, ours)):
            refusal = f"its shared secret is another one ({SECRET} or transport.secret_file)"
        elif about["protocol"] != PROTOCOL:
            refusal = f"it speaks protocol {about['protocol']}, this node {PROTOCOL}: install the same fedsim"
        proof = _proof(self.secret, "parent", ticket, ours, theirs)
        verdict = {"refused": refusal} if refusal else {"proof": proof, "timeout": self.timeout}
        store.set(key + "verdict", json.dumps(verdict))
        if refusal:
            raise Refused(refusal)
        pair = GlooPair(
            PrefixStore(_proof(self.secret, "meet", ticket, ours, theirs), store),
            0,
            self.device,
            self.timeout,
            _step(self.timeout),
        )
        for name in ("hello", "challenge", "proof", "verdict"):
            store.delete_key(key + name)
        key = bytes.fromhex(_proof(self.secret, "messages", ticket, ours, theirs))
        link = Link(pair, name=str(about["name"])[:100], key=key)
        first = link.receive()
        if not isinstance(first, Message):
            link.close()
            raise Refused(f"it did not say what it is ({'' if first is None else first.reason})")
        return link, {**first.fields, "name": link.name}


def knock(address: str, *, secret: bytes, timeout: float, name: str, about: dict[str, Any]) -> Link:
    """The child's side: join the parent at HOST:PORT.

    Args:
        address, secret: of the parent.
        timeout: seconds for a step of the handshake, at least 10; afterwards that of the parent counts.
        name: of this node, for the parent's log.
        about: what the parent should know before it decides.

    Raises:
        Refused: the parent gave a reason.
        Unreachable: nobody is there, or nobody answers.
    """
    found: list[Link | Exception] = []
    lock, given_up = threading.Lock(), False

    def attempt() -> None:
        try:
            link = _handshake(address, secret, timeout, name, about)
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            found.append(error)
            return
        with lock:
            found.append(link)
            if given_up:
                link.close()

    # in a thread, because some calls of a TCPStore wait for ever on a parent that has been stopped
    thread = threading.Thread(target=attempt, daemon=True, name="knock")
    thread.start()
    thread.join(_STEPS * _step(timeout))
    with lock:
        given_up = not found
    if given_up:
        raise Unreachable(f"{address} does not answer")
    if isinstance(found[0], Link):
        return found[0]
    if isinstance(found[0], Refused):
        raise found[0]
    reason = " ".join(str(found[0]).split())[:120]
    raise Unreachable(f"{address} does not answer ({reason})")


def _handshake(address: str, secret: bytes, timeout: float, name: str, about: dict[str, Any]) -> Link:
    host, port = split_address(address)
    step = _step(timeout)
    with socket.create_connection((host, port), step) as probe:
        local = probe.getsockname()[0]
    store = TCPStore(host, port, None, False, timedelta(seconds=step), wait_for_workers=False)
    ticket = store.add("tickets", 1)
    key, ours = f"{ticket}/", secrets.token_hex(16)
    store.set(key + "hello", json.dumps({"name": name, "nonce": ours, "protocol": PROTOCOL}))
    theirs = str(_get(store, key + "challenge")["nonce"])[:64]
    store.set(key + "proof", json.dumps({"proof": _proof(secret, "child", ticket, ours, theirs)}))
    verdict = _get(store, key + "verdict")
    if "refused" in verdict:
        raise Refused(f"{address} refused this node: {verdict['refused']}")
    if not hmac.compare_digest(str(verdict.get("proof")), _proof(secret, "parent", ticket, theirs, ours)):
        raise Refused(f"whoever listens at {address} does not know the shared secret; it is not the parent")
    meet = _proof(secret, "meet", ticket, theirs, ours)
    silence = float(verdict["timeout"])  # both sides must beat as often as the parent expects it
    pair = GlooPair(PrefixStore(meet, store), 1, gloo_device(local), silence, step)
    link = Link(pair, name=address, key=bytes.fromhex(_proof(secret, "messages", ticket, theirs, ours)))
    link.send(Message(kind="hello", fields=about))
    return link
