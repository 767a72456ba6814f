"""A node below another: joins its parent, trains what it is told, and joins again when the parent has gone.

A worker trains in a trainer of its own; a scheduler (`fedsim.transport.scheduler`) is a worker whose trainer is a star.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedsim.transport.base import Transport
from fedsim.transport.identity import Identity
from fedsim.transport.join import Refused, Unreachable, knock
from fedsim.transport.link import Link, Lost
from fedsim.transport.messages import job_of, result_message
from fedsim.transport.shares import NoWorkers
from fedsim.transport.wire import Message

log = logging.getLogger("fedsim")

_AGAIN = 0.5  # seconds between attempts to join
_IDLE = 0.1  # seconds


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a node has built for a run.

    Attributes:
        transport: trains its shares.
        device: where the broadcast should be.
        ready: what it tells the parent: config_hash, dataset and layout of a worker, role and workers of a scheduler.
        idle: called a few times a second while there is nothing to do.
        handlers: what answers messages of other kinds; None: no answer.
        abandon: ends it where this node ends but not the run; None: as `transport.close`.
    """

    transport: Transport
    device: torch.device
    ready: Callable[[], dict[str, Any]]
    idle: Callable[[], None] | None = None
    handlers: Mapping[str, Callable[[Message], Message | None]] = field(default_factory=dict)
    abandon: Callable[[], None] | None = None


class Worker:
    """Serves a parent until the run has ended.

    Args:
        addresses: the parent's, and after it those to try when it is gone.
        secret: shared by all nodes of the run.
        name: for the parent's log.
        version: of fedsim.
        claims: the configuration that this node insists on, as dotted keys; None: whatever the parent says.
        build: (identity, addresses) -> what trains; called again only for another run (`Identity.continues`).
        timeout: seconds of silence after which the parent counts as gone.
        join_seconds: how long to try to join, and to join again.
    """

    def __init__(
        self,
        addresses: list[str],
        *,
        secret: bytes,
        name: str,
        version: str,
        claims: dict[str, Any] | None,
        build: Callable[[Identity, list[str]], Built],
        timeout: float = 30.0,
        join_seconds: float = 300.0,
    ) -> None:
        self.first, self.upstream = addresses, list[str]()
        self.secret, self.name, self.version, self.claims = secret, name, version, claims
        self.build, self.timeout, self.join_seconds = build, timeout, join_seconds
        self.built: tuple[Identity, Built] | None = None
        self.link: Link | None = None

    def run(self) -> None:
        """Returns when the parent says that the run has ended.

        Raises:
            Refused: the parent does not want this node.
            Unreachable: no parent for `join_seconds`.
        """
        ended = False
        try:
            while not ended:
                self.link = self._join()
                reason = self._serve(self.link)
                self.link.abort()
                ended = reason is None
                if not ended:
                    log.warning(f"lost {self.link.name}: {reason}; joining again")
        finally:
            if self.link is not None:
                self.link.abort()
                self.link.join()
            if self.built is not None:
                built = self.built[1]
                (built.transport.close if ended or built.abandon is None else built.abandon)()

    def _join(self) -> Link:
        begin = time.monotonic()
        unreachable: Unreachable | None = None
        while unreachable is None or time.monotonic() - begin < self.join_seconds:
            for address in dict.fromkeys((*self.first, *self.upstream)):
                about = {"version": self.version, "claims": self.claims}
                try:
                    return knock(address, secret=self.secret, timeout=self.timeout, name=self.name, about=about)
                except Unreachable as error:
                    unreachable = error
            time.sleep(_AGAIN)
        raise unreachable

    def _serve(self, link: Link) -> str | None:
        """Work for a parent until the link ends: the reason, or None where the run has ended."""
        prepared = False  # before, the parent waits for one thing: that this node is ready
        while True:
            idle = self.built[1].idle if prepared and self.built is not None else None
            message = link.receive(None if idle is None else _IDLE)
            if message is None:
                assert idle is not None
                idle()
                continue
            if isinstance(message, Lost):
                return message.reason
            if message.kind == "end":
                return None
            if message.kind == "refused":
                raise Refused(f"{link.name} refused this node: {message.fields.get('reason')}")
            if message.kind == "welcome":
                self._prepare(link, message)
                prepared = True
            elif message.kind == "job":
                self._answer(link, message)
            elif self.built is not None and message.kind in self.built[1].handlers:
                answer = self.built[1].handlers[message.kind](message)
                if answer is not None:
                    link.send(answer)
            elif message.kind == "accepted":
                log.info(f"{self.name} joined {link.name}")
            del message  # before the next one comes

    def _prepare(self, link: Link, welcome: Message) -> None:
        identity = Identity(**welcome.fields["identity"])
        link.wire.limit = identity.limit
        self.upstream = [*self.first, *welcome.fields["upstream"]]
        if self.built is None or not identity.continues(self.built[0]):
            try:
                self.built = (identity, self.build(identity, self.upstream))
            except (ValueError, OSError) as error:
                link.close(Message(kind="failed", fields={"reason": str(error)}))
                link.join()
                raise
        link.send(Message(kind="ready", fields=self.built[1].ready()))

    def _answer(self, link: Link, message: Message) -> None:
        """Send a share's answer.

        Raises:
            ConnectionError: the processes that this node trains with are gone, and so it ends.
        """
        try:
            link.send(self._train(message))
        except ConnectionError as error:
            fields = {"share": message.fields["share"], "blame": "node", "reason": str(error)}
            link.close(Message(kind="failed", fields=fields))
            link.join()
            raise

    def _train(self, message: Message) -> Message:
        """A share's answer: its partial average, or why there is none."""
        assert self.built is not None, "a job comes after the welcome"
        built, job = self.built[1], job_of(message)
        number = message.fields["share"]
        try:
            partial = built.transport.run_round(replace(job, broadcast=job.broadcast.to(built.device)))
        except NoWorkers:
            return Message(kind="declined", fields={"share": number})
        except ValueError as error:  # it would happen anywhere: a client that is not finite
            return Message(kind="failed", fields={"share": number, "blame": "run", "reason": str(error)})
        except RuntimeError as error:  # it may go well elsewhere: no memory left
            log.exception("a share failed")
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            return Message(kind="failed", fields={"share": number, "blame": "node", "reason": reason})
        return result_message(partial, number)
