"""A scheduler: a worker towards its parent, a star towards its children, so that one vector goes up for all of them.

It needs neither the data nor the model: what its children must agree on comes from the parent, and the sizes of the
clients come with every job.
"""

import socket
from typing import Any

import torch

from fedsim.transport.identity import Identity
from fedsim.transport.star import Star
from fedsim.transport.wire import Message
from fedsim.transport.worker import Built, Worker


class Scheduler:
    """Serves a parent with the workers that join it.

    Args:
        addresses: as for `Worker`.
        listener: where its children join (`fedsim.transport.join.listen`), taken over.
        secret, name, version, claims, timeout, join_seconds: as for `Worker`.
        slow_factor, share_seconds: as for `Star`.
    """

    def __init__(
        self,
        addresses: list[str],
        listener: socket.socket,
        *,
        secret: bytes,
        name: str,
        version: str,
        claims: dict[str, Any] | None,
        timeout: float,
        join_seconds: float,
        slow_factor: float,
        share_seconds: float = 3600.0,
    ) -> None:
        self.listener, self.secret, self.timeout = listener, secret, timeout
        self.slow_factor, self.share_seconds = slow_factor, share_seconds
        self.star: Star | None = None
        self.worker = Worker(
            addresses,
            secret=secret,
            name=name,
            version=version,
            claims=claims,
            build=self._build,
            timeout=timeout,
            join_seconds=join_seconds,
        )

    def run(self) -> None:
        """As `Worker.run`."""
        self.worker.run()

    def _build(self, identity: Identity, upstream: list[str]) -> Built:
        if self.star is not None:
            raise ValueError("the parent now runs something else; start this scheduler and its children again")
        star = self.star = Star(
            self.listener,
            secret=self.secret,
            identity=identity,
            own=None,
            upstream=tuple(upstream),
            timeout=self.timeout,
            slow_factor=self.slow_factor,
            share_seconds=self.share_seconds,
            expected=lambda: 0,
            on_workers=self._tell,
        )

        def idle() -> None:
            while not star.events.empty():
                star.next_event(0)

        def ready() -> dict[str, Any]:
            return {"role": "scheduler", "workers": star.num_workers}

        return Built(transport=star, device=torch.device("cpu"), ready=ready, idle=idle, abandon=star.abandon)

    def _tell(self, num_workers: int) -> None:
        if self.worker.link is not None:
            self.worker.link.send(Message(kind="workers", fields={"workers": num_workers}))
