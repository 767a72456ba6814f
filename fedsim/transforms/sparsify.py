"""Sparse updates: a few of the elements are sent, the rest may be remembered.

Top-k with error feedback: Stich et al. 2018, "Sparsified SGD with Memory", algorithm 1. Momentum correction: Lin et
al. 2018, "Deep Gradient Compression", algorithm 2 (with factor masking). Random-k: Stich et al. 2018, definition 2.1;
Konecny et al. 2016, "Federated Learning: Strategies for Improving Communication Efficiency" (random mask).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.rng import stream
from fedsim.transforms.base import Sending, Transform, Wire


def num_kept(fraction: float, size: int) -> int:
    """k, at least 1."""
    return max(1, round(fraction * size))


def _checked(name: str, fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"transforms.{name}.fraction must be in (0, 1], got {fraction}")


def top_k(fraction: float = 0.01, error_feedback: bool = True, momentum: float = 0.0) -> Transform:
    """The largest elements by magnitude are sent.

    On the wire: k values, and which they are, as k indices of ceil(log2 S) bits or as S bits, whichever is shorter.

    Args:
        fraction: k / S, in (0, 1].
        error_feedback: what was not sent is added to the client's next update.
        momentum: m of DGC, in [0, 1): the client sends of the sum of u, with u <- m u + update, and forgets u where
            it was sent. Not 0 needs error_feedback.
    """
    _checked("top_k", fraction)
    if not 0 <= momentum < 1:
        raise ValueError(f"transforms.top_k.momentum must be in [0, 1), got {momentum}")
    if momentum and not error_feedback:
        raise ValueError("transforms.top_k.momentum corrects the momentum of what is remembered: set error_feedback")

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        size = rows.shape[1]
        memory = sending.memory
        if memory is not None and momentum:
            rows = memory[:, size:].mul_(momentum).add_(rows)
        total = rows if memory is None else memory[:, :size].add_(rows)
        sent = total.abs().topk(num_kept(fraction, size), dim=1, sorted=False).indices
        message = torch.zeros_like(total).scatter_(1, sent, total.gather(1, sent))
        if memory is not None:
            memory[:, :size].scatter_(1, sent, 0.0)
            if momentum:
                memory[:, size:].scatter_(1, sent, 0.0)
        return message

    def wire(wire: Wire) -> Wire:
        if wire.is_sparse:
            raise ValueError("transforms.top_k cannot follow a transform that has chosen elements already")
        wire = wire.remembered() if error_feedback else wire
        kept = num_kept(fraction, wire.size)
        index_bits = max(1, math.ceil(math.log2(wire.size)))
        indices = min(math.ceil(kept * index_bits / 8), math.ceil(wire.size / 8))
        return replace(wire, num_values=kept, index_bytes=indices if kept < wire.size else 0)

    vectors = 2 if momentum else int(error_feedback)
    scatters = error_feedback and fraction < 1  # what waited for several rounds comes at once
    return Transform(name="top_k", apply=apply, wire=wire, num_client_vectors=vectors, scatters=scatters)


def random_k(fraction: float = 0.01, error_feedback: bool = False) -> Transform:
    """Elements chosen at random are sent.

    On the wire: k values and no index, for the server draws the same elements from (seed, round, client).

    Args:
        fraction: k / S, in (0, 1].
        error_feedback: what was not sent is added to the client's next update, and what is sent is sent as it is.
            Without, it is multiplied by S / k, which makes the message right in expectation.
    """
    _checked("random_k", fraction)

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        size, memory = rows.shape[1], sending.memory
        kept = num_kept(fraction, size)
        total = rows if memory is None else memory.add_(rows)
        draws = [
            stream(sending.seed, sending.purpose, sending.round, c).choice(size, kept, replace=False, shuffle=False)
            for c in sending.clients
        ]
        sent = torch.stack([torch.from_numpy(draw) for draw in draws]).to(rows.device)
        values = total.gather(1, sent)
        if memory is None:
            values *= size / kept
        message = torch.zeros_like(total).scatter_(1, sent, values)
        if memory is not None:
            memory.scatter_(1, sent, 0.0)
        return message

    def wire(wire: Wire) -> Wire:
        if wire.is_sparse:
            raise ValueError("transforms.random_k cannot follow a transform that has chosen elements already")
        wire = wire.remembered() if error_feedback else wire
        return replace(wire, num_values=num_kept(fraction, wire.size))

    return Transform(
        name="random_k",
        apply=apply,
        wire=wire,
        num_client_vectors=int(error_feedback),
        scatters=fraction < 1,
    )
