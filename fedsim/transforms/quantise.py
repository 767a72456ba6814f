"""Coarse values: few bits for each element that is sent.

QSGD: Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", section 3.1;
here with a fixed number of bits for each element instead of Elias coding. Sign with error feedback: Karimireddy et
al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", algorithm 1 (EF-SIGNSGD).
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsim.transforms.base import Sending, Transform, Wire


def quantise(rows: Tensor, uniform: Tensor, num_levels: int, bucket_size: int) -> tuple[Tensor, Tensor]:
    """Stochastic levels of rows (F, S).

    Args:
        rows: what is sent.
        uniform: (F, S) in [0, 1): rounds up where it is below the fraction.
        num_levels: s, above zero.
        bucket_size: elements that share a norm.

    Returns:
        levels (F, S) in -s ... s, as float, and norms (F, ceil(S / bucket_size)).
    """
    norms = torch.linalg.vector_norm(_buckets(rows, bucket_size), dim=2)
    scale = num_levels / norms
    scale = _spread(torch.where(scale.isfinite(), scale, 0.0), rows.shape[1], bucket_size)  # a bucket of zeros
    exact = rows.abs() * scale
    levels = (exact.floor() + (uniform < exact.frac())).clamp_(max=num_levels)
    return levels.copysign_(rows), norms


def dequantise(levels: Tensor, norms: Tensor, num_levels: int, bucket_size: int) -> Tensor:
    """What the server reads: (F, S)."""
    return levels * _spread(norms / num_levels, levels.shape[1], bucket_size)


def _buckets(rows: Tensor, bucket_size: int) -> Tensor:
    """(F, S) to (F, buckets, bucket_size), filled up with zeros."""
    return F.pad(rows, (0, -rows.shape[1] % bucket_size)).view(len(rows), -1, bucket_size)


def _spread(values: Tensor, size: int, bucket_size: int) -> Tensor:
    """(F, buckets) to (F, size): each bucket's value at its elements."""
    return values.repeat_interleave(bucket_size, dim=1)[:, :size]


def qsgd(num_bits: int = 8, bucket_size: int | None = None) -> Transform:
    """Each element becomes one of 2 s + 1 levels, s = 2^(num_bits - 1) - 1, at random such that the mean is right.

    On the wire: num_bits for each value, sign included, and a norm for each bucket.

    Args:
        num_bits: 2 to 16.
        bucket_size: elements that share a norm; None: all. The variance grows with the square root of it.
    """
    if not 2 <= num_bits <= 16:
        raise ValueError(f"transforms.qsgd.num_bits must be 2 to 16, got {num_bits}")
    if bucket_size is not None and bucket_size < 1:
        raise ValueError(f"transforms.qsgd.bucket_size must be at least 1 or null, got {bucket_size}")
    num_levels = 2 ** (num_bits - 1) - 1

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        size = bucket_size or rows.shape[1]
        uniform = torch.empty_like(rows)
        for client, row in zip(sending.clients, uniform, strict=True):
            row.uniform_(generator=sending.generator(client, row.device))
        levels, norms = quantise(rows, uniform, num_levels, size)
        return dequantise(levels, norms, num_levels, size)

    def wire(wire: Wire) -> Wire:
        if wire.is_factored:
            raise ValueError("transforms.qsgd cannot follow low_rank, which sends factors and not elements")
        buckets = -(-wire.size // (bucket_size or wire.size))
        return replace(wire, value_bits=num_bits, extra_bytes=buckets * wire.dtype_bits // 8)

    return Transform(name="qsgd", apply=apply, wire=wire, scatters=True)


def sign(error_feedback: bool = True) -> Transform:
    """The signs of the elements, times the mean of their magnitudes.

    On the wire: a bit for each element (0 counts as positive) and one number.

    Args:
        error_feedback: what the message lacks is added to the client's next update.
    """

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        memory = sending.memory
        total = rows if memory is None else memory.add_(rows)
        scale = total.abs().mean(dim=1, keepdim=True)
        message = torch.where(total >= 0, scale, -scale)
        if memory is not None:
            memory.sub_(message)
        return message

    def wire(wire: Wire) -> Wire:
        if wire.is_sparse:
            raise ValueError("transforms.sign cannot follow a transform that has chosen elements: a zero has no sign")
        return replace(wire, value_bits=1, extra_bytes=wire.dtype_bits // 8)

    return Transform(name="sign", apply=apply, wire=wire, num_client_vectors=int(error_feedback), scatters=True)
