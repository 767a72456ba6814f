"""Low rank: what the factors give is a projection, what they leave is remembered, and the bytes are theirs."""

import numpy as np
import pytest
import torch

from fedsim.transforms import clip, low_rank, qsgd, random_k, sign, top_k
from fedsim.vector import Entry, Layout

# A matrix, its bias, a convolution of 6 x 18, a matrix too small to gain, then running statistics; behind these, what
# an algorithm averages beside the model.
SHAPES = [(20, 30), (20,), (6, 2, 3, 3), (2, 3)]
STATISTICS, BESIDE = 4, 5


def layout() -> Layout:
    entries, start = [], 0
    for i, shape in enumerate([*SHAPES, (STATISTICS,)]):
        size = torch.Size(shape)
        entries.append(Entry(str(i), size, start, start + size.numel()))
        start += size.numel()
    return Layout(tuple(entries[:-1]), tuple(entries[-1:]))


LAYOUT = layout()
SIZE = LAYOUT.size + BESIDE
# (first element, height, width) of the two that become products
MATRICES = [(0, 20, 30), (620, 6, 18)]


def made(**options):
    transform = low_rank(**options)
    assert transform.fit is not None
    return transform.fit(LAYOUT)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices(row):
    return [row[start : start + n * m].view(n, m) for start, n, m in MATRICES]


def test_what_has_that_rank_arrives_whole_and_so_does_all_that_is_no_matrix(send):
    rows = normal(3, SIZE)
    for i, row in enumerate(rows):
        for k, matrix in enumerate(matrices(row)):
            matrix.copy_(normal(matrix.shape[0], 2, seed=10 * i + k) @ normal(2, matrix.shape[1], seed=100 + k))
    torch.testing.assert_close(send(made(rank=2, error_feedback=False), rows), rows, rtol=1e-9, atol=1e-9)
    rows = normal(3, SIZE, seed=1)
    sent = send(made(rank=2, error_feedback=False), rows)
    rest = torch.ones(SIZE, dtype=torch.bool)
    for start, n, m in MATRICES:
        rest[start : start + n * m] = False
    assert torch.equal(sent[:, rest], rows[:, rest])
    assert rest.sum() == SIZE - 600 - 108


@pytest.mark.parametrize("rank", [1, 3])
def test_what_arrives_is_a_projection_of_that_rank_and_with_iterations_the_best(send, rank):
    """Eckart and Young: no matrix of rank r is closer than the r largest singular values and their vectors."""
    row = normal(1, SIZE)
    once = matrices(send(made(rank=rank, error_feedback=False), row)[0])
    many = matrices(send(made(rank=rank, error_feedback=False, num_iterations=300), row)[0])
    for matrix, first, last in zip(matrices(row[0]), once, many, strict=True):
        assert torch.linalg.matrix_rank(first) == rank
        torch.testing.assert_close(first.T @ (matrix - first), torch.zeros_like(matrix.T @ matrix), rtol=0, atol=1e-9)
        u, s, v = torch.linalg.svd(matrix)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(last, best, rtol=0, atol=1e-6)
        assert (matrix - first).norm() > (matrix - best).norm() * (1 + 1e-9)


def test_the_start_is_powersgds_and_the_same_for_all_clients(send):
    """Algorithm 1 by hand: P = M Q, orthogonalised; Q = M^T P; P Q^T. The same Q at the start for everybody."""
    rows = normal(2, SIZE)
    transform = made(rank=2, error_feedback=False)
    together = send(transform, rows, clients=[5, 8], round=4)
    assert torch.equal(send(transform, rows[1:], clients=[8], round=4)[0], together[1])
    same = send(transform, rows[:1].expand(2, -1), clients=[5, 8], round=4)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(send(transform, rows, clients=[5, 8], round=5), together)
    identity = rows[:1].clone()
    matrices(identity[0])[0].copy_(torch.eye(20, 30))
    start = torch.linalg.svd(matrices(send(transform, identity, round=4)[0])[0]).U[:, :2]  # spans the Q of 20 rows
    p = torch.linalg.qr(matrices(rows[0])[0][:, :20] @ start).Q
    only = rows[:1].clone()
    matrices(only[0])[0][:, 20:] = 0
    expected = p @ (p.T @ matrices(only[0])[0])
    torch.testing.assert_close(matrices(send(transform, only, round=4)[0])[0], expected, rtol=1e-9, atol=1e-9)


def test_error_feedback_loses_nothing(send):
    memory = torch.zeros(2, SIZE, dtype=torch.float64)
    updates = [normal(2, SIZE, seed=t) for t in range(6)]
    sent = [send(made(rank=1), rows, memory=memory, round=t + 1) for t, rows in enumerate(updates)]
    torch.testing.assert_close(sum(sent) + memory, sum(updates), rtol=1e-12, atol=1e-12)
    assert memory.abs().max() > 0


def test_the_bytes_are_those_of_factors_that_give_the_message_back(send, num_bytes):
    transform = made(rank=2, error_feedback=False)
    message = send(transform, normal(1, SIZE).float())[0]
    data, decoded, rest = b"", torch.empty(SIZE), torch.ones(SIZE, dtype=torch.bool)
    for (start, n, m), matrix in zip(MATRICES, matrices(message), strict=True):
        u, s, v = torch.linalg.svd(matrix)
        left, right = (u[:, :2] * s[:2]).contiguous(), v[:2].contiguous()
        data += left.numpy().tobytes() + right.numpy().tobytes()
        decoded[start : start + n * m] = (left @ right).view(-1)
        rest[start : start + n * m] = False
    data += message[rest].numpy().tobytes()
    decoded[rest] = torch.from_numpy(np.frombuffer(data[-4 * int(rest.sum()) :], np.float32).copy())
    torch.testing.assert_close(decoded, message, rtol=1e-4, atol=1e-5)
    assert num_bytes(SIZE, transform) == len(data)
    assert num_bytes(SIZE, clip(1.0), transform, clip(1.0)) == len(data)


def test_a_rank_at_which_nothing_is_shorter_sends_everything(send, num_bytes):
    rows = normal(1, SIZE)
    assert torch.equal(send(made(rank=30, error_feedback=False), rows), rows)
    assert num_bytes(SIZE, made(rank=30), qsgd(8)) == SIZE + 4


@pytest.mark.parametrize("other", [top_k(0.1), random_k(0.1), sign(), qsgd(8)])
def test_elements_are_not_chosen_or_rounded_around_it(num_bytes, other):
    for transforms in ((other, made()), (made(rank=2), other)):
        with pytest.raises(ValueError, match=r"transforms\.\w+ cannot follow"):
            num_bytes(SIZE, *transforms)


@pytest.mark.parametrize("options", [{"rank": 0}, {"num_iterations": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=f"low_rank.{next(iter(options))} must be at least 1"):
        low_rank(**options)
