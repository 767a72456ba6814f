"""Low rank: each layer's matrix is sent as a product of two thin ones.

PowerSGD: Vogels, Karimireddy and Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", algorithm 1, with the error feedback of its algorithm 2. There the workers average the first factor
before they make the second; clients that do not wait for each other cannot, so here each one's product is its own
matrix projected on what one step of subspace iteration has found. The iteration starts from Gaussian columns, new in
each round and the same for all clients, in the place of the last round's factor.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.rng import torch_stream
from fedsim.transforms.base import Sending, Transform, Wire
from fedsim.vector import Layout


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """Elements `start` ... of the update: height x width, of which the product of thin ones needs `saved` fewer."""

    start: int
    height: int
    width: int
    saved: int


def _matrices(layout: Layout, rank: int) -> list[_Matrix]:
    """A matrix for each parameter that is shorter as a product: its first dimension by all others."""
    found = []
    for entry in layout.parameters:
        if len(entry.shape) > 1:
            height, width = entry.shape[0], entry.shape[1:].numel()
            saved = height * width - rank * (height + width)
            found.append(_Matrix(start=entry.start, height=height, width=width, saved=saved))
    return [matrix for matrix in found if matrix.saved > 0]


def low_rank(rank: int = 4, num_iterations: int = 1, error_feedback: bool = True) -> Transform:
    """A matrix (height, width) becomes the product of (height, rank) and (rank, width).

    On the wire: both factors of each matrix, and as they are: vectors, matrices that would not be shorter, running
    statistics, and what the algorithm averages beside the model.

    Args:
        rank: r, at least 1.
        num_iterations: of the subspace iteration; more come closer to the best approximation of this rank.
        error_feedback: what was not sent is added to the client's next update.
    """
    for name, value in (("rank", rank), ("num_iterations", num_iterations)):
        if value < 1:
            raise ValueError(f"transforms.low_rank.{name} must be at least 1, got {value}")

    def fit(layout: Layout) -> Transform:
        matrices = _matrices(layout, rank)

        def apply(rows: Tensor, sending: Sending) -> Tensor:
            total = rows if sending.memory is None else sending.memory.add_(rows)
            message = total.clone()
            generator = torch_stream(sending.seed, sending.purpose, sending.round)
            for m in matrices:
                right = torch.randn(m.width, rank, generator=generator, dtype=torch.float64)
                right = right.to(rows.device, rows.dtype)
                part = slice(m.start, m.start + m.height * m.width)
                for row, sent in zip(total, message, strict=True):  # one by one: the same bits for any number of rows
                    sent[part] = _projected(row[part].view(m.height, m.width), right, num_iterations).view(-1)
            if sending.memory is not None:
                sending.memory.sub_(message)
            return message

        def wire(wire: Wire) -> Wire:
            if wire.is_sparse or wire.value_bits != wire.dtype_bits:
                raise ValueError("transforms.low_rank cannot follow a transform that has chosen or rounded elements")
            saved = sum(matrix.saved for matrix in matrices)
            return replace(wire, num_values=wire.num_values - saved, is_factored=saved > 0)

        return Transform(name="low_rank", apply=apply, wire=wire, num_client_vectors=int(error_feedback))

    return Transform(name="low_rank", fit=fit)


def _projected(matrix: Tensor, right: Tensor, num_iterations: int) -> Tensor:
    """matrix (n, m) to its projection on `rank` directions, from the starting columns right (m, rank)."""
    left = torch.linalg.qr(matrix @ right).Q
    for _ in range(num_iterations - 1):
        left = torch.linalg.qr(matrix @ (matrix.T @ left)).Q
    return left @ (left.T @ matrix)
