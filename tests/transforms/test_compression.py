"""Compression: what is sent and what is kept, right in expectation, and bytes as an encoder of the message counts."""

import math

import numpy as np
import pytest
import torch

from fedsim.rng import stream
from fedsim.transforms import clip, local_gaussian, qsgd, random_k, sign, top_k
from fedsim.transforms.quantise import dequantise, quantise


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pack(values, bits: int) -> bytes:
    """Non-negative integers below 2^bits, one after another without gaps, filled up to whole bytes."""
    digits = (np.asarray(values, np.uint64)[:, None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(digits.astype(np.uint8)).tobytes()


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    digits = np.unpackbits(np.frombuffer(data, np.uint8))[: bits * count].reshape(count, bits).astype(np.uint64)
    return (digits << np.arange(bits, dtype=np.uint64)).sum(1)


def test_top_k_sends_the_largest(send):
    rows = torch.tensor([[1.0, -5.0, 2.0, 0.5], [0.0, 0.1, -0.2, 0.3]])
    found = send(top_k(0.5, error_feedback=False), rows)
    assert found.tolist() == [[0.0, -5.0, 2.0, 0.0], [0.0, 0.0, pytest.approx(-0.2), pytest.approx(0.3)]]


COMPRESSORS = {
    "top_k": top_k(0.1),
    "random_k": random_k(0.1, error_feedback=True),
    "sign": sign(),
}


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("seed", range(3))
def test_error_feedback_loses_nothing(name, seed, send):
    """All that was sent and what is still remembered are all the updates, for each client."""
    transform = COMPRESSORS[name]
    memory = torch.zeros(3, 50, dtype=torch.float64)
    updates = [normal(3, 50, seed=seed + t).double() for t in range(6)]
    sent = [send(transform, rows, memory=memory, round=t + 1) for t, rows in enumerate(updates)]
    torch.testing.assert_close(sum(sent) + memory, sum(updates), rtol=1e-12, atol=1e-12)
    assert memory.abs().max() > 0


def test_top_k_with_feedback_sends_the_exact_values_and_remembers_the_rest_exactly(send):
    rows, memory = normal(2, 40), torch.zeros(2, 40)
    sent = send(top_k(0.1), rows, memory=memory)
    assert torch.equal(sent + memory, rows)
    assert ((sent != 0).sum(1) == 4).all()
    assert ((sent != 0) & (memory != 0)).sum() == 0


def test_momentum_correction_is_deep_gradient_compressions_loop(send):
    """Lin et al. 2018, algorithm 2: u <- m u + g, v <- v + u, send the top of v, forget v and u there."""
    transform, memory = top_k(0.2, momentum=0.9), torch.zeros(1, 20, dtype=torch.float64)
    u, v = np.zeros(10), np.zeros(10)
    for t in range(8):
        gradient = normal(1, 10, seed=t).double()
        found = send(transform, gradient, memory=memory, round=t + 1)[0]
        u = 0.9 * u + gradient[0].numpy()
        v = v + u
        top = np.argsort(-np.abs(v))[:2]
        expected = np.zeros(10)
        expected[top] = v[top]
        u[top] = v[top] = 0.0
        np.testing.assert_allclose(found.numpy(), expected)
    np.testing.assert_allclose(memory[0].numpy(), np.concatenate([v, u]))


def test_random_k_is_right_in_expectation(send):
    """4,000 rounds of 2 of 10 elements, times 5: an element's mean is off by its deviation 2 |x| / sqrt(4,000)."""
    row = normal(1, 10)
    found = torch.stack([send(random_k(0.2), row, round=t)[0] for t in range(1, 4001)])
    assert ((found != 0).sum(1) == 2).all()
    assert ((found.mean(0) - row[0]).abs() < 5 * 2 * row[0].abs() / 4000**0.5).all()


@pytest.mark.parametrize(("num_bits", "bucket_size"), [(2, None), (4, None), (4, 7), (8, 1000)])
def test_qsgd_is_right_in_expectation_and_its_variance_is_the_papers(num_bits, bucket_size):
    """Lemma 3.1: E[Q] = v and E||Q - v||^2 <= min(n / s^2, sqrt(n) / s) ||v||^2, for buckets of n. 20,000 draws."""
    rows, levels, draws = normal(1, 21), 2 ** (num_bits - 1) - 1, 20_000
    size = bucket_size or 21
    uniform = torch.rand(draws, 21, generator=torch.Generator().manual_seed(1))
    found = dequantise(*quantise(rows.expand(draws, 21), uniform, levels, size), levels, size)
    error = found - rows
    deviation = error.std(0).clamp(min=1e-6)
    assert (error.mean(0).abs() < 5 * deviation / draws**0.5).all()
    n = min(size, 21)
    bound = min(n / levels**2, n**0.5 / levels)
    for start in range(0, 21, size):
        part = slice(start, start + size)
        assert error[:, part].square().sum(1).mean() <= bound * rows[:, part].square().sum() * 1.02


def test_qsgd_of_zeros_and_of_one_value(send):
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    assert torch.equal(send(qsgd(4), rows).abs(), rows.abs())
    torch.testing.assert_close(send(qsgd(4), rows), rows)


def test_a_clients_draws_are_its_own(send):
    rows = normal(3, 30)
    for transform in (qsgd(3), random_k(0.2)):
        together = send(transform, rows, clients=[5, 8, 2])
        for i, client in enumerate([5, 8, 2]):
            torch.testing.assert_close(send(transform, rows[i : i + 1], clients=[client])[0], together[i])
        assert not torch.equal(send(transform, rows, clients=[5, 8, 2], round=2), together)
        assert not torch.equal(send(transform, rows, clients=[5, 8, 2], seed=1), together)


def test_sign_sends_one_magnitude(send):
    row = torch.tensor([[1.0, -3.0, 0.0, 4.0]])
    assert send(sign(error_feedback=False), row).tolist() == [[2.0, -2.0, 2.0, 2.0]]


SIZES = [1, 2, 37, 256, 1000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fraction", [0.005, 0.1, 0.5, 1.0])
def test_the_bytes_of_top_k_are_those_of_an_encoding_that_gives_the_message_back(send, num_bytes, size, fraction):
    transform = top_k(fraction, error_feedback=False)
    message = send(transform, normal(1, size))[0].numpy()
    kept = max(1, round(fraction * size))
    where = np.sort(np.argsort(-np.abs(message), kind="stable")[:kept])
    values, bits = message[where].tobytes(), max(1, math.ceil(math.log2(size)))
    by_index, by_mask = pack(where, bits), pack(np.isin(np.arange(size), where), 1)
    data = b"" if kept == size else min(by_index, by_mask, key=len)
    assert num_bytes(size, transform) == len(values) + len(data)

    decoded = np.zeros(size, np.float32)
    if kept == size:
        places = np.arange(size)
    elif data is by_index:
        places = unpack(data, bits, kept).astype(int)
    else:
        places = np.flatnonzero(unpack(data, 1, size))
    decoded[places] = np.frombuffer(values, np.float32)
    np.testing.assert_array_equal(decoded, message)


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_of_random_k_need_no_index(send, num_bytes, size):
    """The server draws the places again from the seed, as here."""
    transform = random_k(0.3)
    message = send(transform, normal(1, size), clients=[6], round=4)[0].numpy()
    kept = max(1, round(0.3 * size))
    where = stream(0, "random_k", 4, 6).choice(size, kept, replace=False, shuffle=False)
    data = message[where].tobytes()
    assert num_bytes(size, transform) == len(data)
    decoded = np.zeros(size, np.float32)
    decoded[where] = np.frombuffer(data, np.float32)
    np.testing.assert_array_equal(decoded, message)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("num_bits", "bucket_size"), [(2, None), (8, None), (5, 64), (16, 10)])
def test_the_bytes_of_qsgd_are_levels_and_norms(num_bytes, size, num_bits, bucket_size):
    rows, levels, bucket = normal(1, size), 2 ** (num_bits - 1) - 1, bucket_size or size
    exact, norms = quantise(rows, torch.rand(1, size), levels, bucket)
    data = pack(exact[0].numpy().astype(np.int64) + levels, num_bits) + norms.numpy().tobytes()
    assert num_bytes(size, qsgd(num_bits, bucket_size)) == len(data)
    split = math.ceil(size * num_bits / 8)
    read = torch.from_numpy(unpack(data[:split], num_bits, size).astype(np.int64) - levels).float()[None]
    read_norms = torch.from_numpy(np.frombuffer(data[split:], np.float32).copy())[None]
    torch.testing.assert_close(
        dequantise(read, read_norms, levels, bucket), dequantise(exact, norms, levels, bucket), rtol=0, atol=0
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_of_sign_are_its_bits_and_a_number(send, num_bytes, size):
    message = send(sign(error_feedback=False), normal(1, size))[0].numpy()
    data = pack(message >= 0, 1) + np.abs(message[:1]).tobytes()
    assert num_bytes(size, sign()) == len(data)
    decoded = np.where(unpack(data[:-4], 1, size) > 0, 1, -1) * np.frombuffer(data[-4:], np.float32)
    np.testing.assert_array_equal(decoded.astype(np.float32), message)


def test_transforms_in_a_row(num_bytes):
    """1,000 elements of float32. 100 values of 4 bits: 50; their places as 1,000 bits: 125, or 100 of 10 bits: 125."""
    assert num_bytes(1000) == 4000
    assert num_bytes(1000, clip(1.0)) == 4000
    assert num_bytes(1000, top_k(0.1), qsgd(4)) == 50 + 125 + 4
    assert num_bytes(1000, random_k(0.1), qsgd(4)) == 50 + 4
    assert num_bytes(1000, top_k(0.1), local_gaussian()) == 4000
    assert num_bytes(1000, qsgd(4), top_k(0.1, error_feedback=False)) == 50 + 125 + 4
    assert num_bytes(1000, qsgd(4), random_k(0.1)) == 50 + 4
    for later in (sign(), top_k(0.5), random_k(0.5)):
        with pytest.raises(ValueError, match="cannot follow a transform that has chosen elements"):
            num_bytes(1000, top_k(0.1), later)


def test_what_is_remembered_is_sent_in_full(send, num_bytes):
    """Sums over rounds that error feedback sends are no levels of one norm: 100 floats, and 1,000 bits for places."""
    assert num_bytes(1000, qsgd(8), top_k(0.1)) == 400 + 125
    assert num_bytes(1000, qsgd(8), random_k(0.1, error_feedback=True)) == 400
    memory = torch.zeros(1, 1000)
    for t in (1, 2):
        rows = send(qsgd(4), normal(1, 1000, seed=t), round=t)
        send(top_k(0.1), rows, memory=memory, round=t)
    levels = memory / rows.abs()[rows != 0].min()
    assert ((levels - levels.round()).abs() > 1e-3).any()


def test_a_later_rounding_needs_no_number_of_an_earlier_one(num_bytes):
    assert num_bytes(1000, qsgd(8), sign()) == 125 + 4
    assert num_bytes(1000, qsgd(8, 10), qsgd(4)) == 500 + 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: top_k(0.0), r"top_k.fraction must be in \(0, 1\]"),
        (lambda: random_k(1.5), r"random_k.fraction must be in \(0, 1\]"),
        (lambda: top_k(momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda: top_k(momentum=0.9, error_feedback=False), "set error_feedback"),
        (lambda: qsgd(1), "num_bits must be 2 to 16"),
        (lambda: qsgd(8, 0), "bucket_size must be at least 1 or null"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
