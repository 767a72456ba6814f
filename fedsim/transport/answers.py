"""What comes back from a child: the partial average of a share, or what is wrong with it; and the bytes that moved."""

from collections.abc import Mapping

import torch

from fedsim.aggregate import PartialAverage
from fedsim.transport.messages import partial_of
from fedsim.transport.shares import Child, Share
from fedsim.transport.wire import Message


class Unwanted(Exception):
    """A child has sent what it was not asked for, or could not do what it was."""


def answer(
    child: Child, message: Message, share: Share | None, size: int | None, dtype: torch.dtype | None = None
) -> PartialAverage:
    """What a child has sent for the share that it was given; `size`, `dtype`: of the total, if they are known.

    A failure that is the node's own is noted in the share.

    Raises:
        ValueError: it would happen anywhere: a client that is not finite.
        Unwanted: that is no result.
    """
    if share is None or message.fields.get("share") != share.number:
        raise Unwanted(f"it answered {message.kind!r} to nothing that was asked")
    if message.kind == "failed" and message.fields.get("blame") == "run":
        raise ValueError(str(message.fields.get("reason")))
    if message.kind == "failed":
        share.failures[child.name] = str(message.fields.get("reason"))
    if message.kind != "result":
        raise Unwanted(str(message.fields.get("reason", f"it sent {message.kind!r}")))
    try:
        partial = partial_of(message, share.job)
    except ValueError as error:
        raise Unwanted(str(error)) from None
    if size not in (None, len(partial.total)) or dtype not in (None, partial.total.dtype):
        raise Unwanted("it sent an average of another model")
    return partial


def traffic(before: Mapping[Child, tuple[int, int]]) -> dict[str, float]:
    """bytes_down/NAME and bytes_up/NAME of each child since its `Link.traffic` was `before`."""
    found: dict[str, float] = {}
    for child, was in before.items():
        for key, now, then in zip(("down", "up"), child.link.traffic, was, strict=True):
            name = f"bytes_{key}/{child.name}"  # twice, if it was lost and has come back
            found[name] = found.get(name, 0.0) + now - then
    return found
