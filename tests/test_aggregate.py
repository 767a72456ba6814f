"""OnlineAverage: the weighted mean, bitwise whatever the order and the grouping."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim.aggregate as aggregate_module
from fedsim.aggregate import _BLOCK, Factors, OnlineAverage, OrderWatch, PartialAverage, merged, weight_scale
from fedsim.memory import TensorMeter


def updates(num, size, seed):
    rng = np.random.default_rng(seed)
    reference = torch.from_numpy(rng.normal(size=size).astype(np.float32))
    scales = 10.0 ** rng.uniform(-7, 1, (num, 1))
    local = reference + torch.from_numpy((scales * rng.normal(size=(num, size))).astype(np.float32))
    return reference, local, rng.integers(1, 500, num).astype(float).tolist()


def average(reference, local, weights, order, scale):
    online = OnlineAverage(len(reference), scale=scale)
    for i in order:
        online.add(local[i], reference, weights[i])
    return online.result()


@settings(deadline=None, max_examples=40)
@given(num=st.integers(1, 30), seed=st.integers(0, 1000), data=st.data())
def test_mean_is_numpys_and_bitwise_the_same_in_any_order_and_grouping(num, seed, data):
    reference, local, weights = updates(num, 57, seed)
    scale = weight_scale(sum(weights))
    straight = average(reference, local, weights, range(num), scale)
    expected = np.average((local - reference).double().numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(straight.mean.numpy(), expected, rtol=1e-12, atol=2e-13)

    shuffled = data.draw(st.permutations(range(num)))
    assert torch.equal(straight.mean, average(reference, local, weights, shuffled, scale).mean)

    cut = data.draw(st.integers(0, num))
    merged = OnlineAverage(57, scale=scale)
    for part in (shuffled[cut:], shuffled[:cut]):
        merged.merge(average(reference, local, weights, part, scale))
    assert torch.equal(straight.mean, merged.result().mean)
    assert merged.weight == straight.weight


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([0.25, 2.0, 8.0, 3.0]))
def test_scaling_all_weights_changes_nothing(seed, factor):
    reference, local, weights = updates(6, 20, seed)
    one = average(reference, local, weights, range(6), weight_scale(sum(weights)))
    scaled = [w * factor for w in weights]
    other = average(reference, local, scaled, range(6), weight_scale(sum(scaled)))
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=2e-13)


def test_blocks_cover_the_whole_vector_and_the_norm_is_the_updates():
    size = _BLOCK * 2 + 77
    reference, local = torch.zeros(size), torch.randn(size, generator=torch.Generator().manual_seed(0))
    online = OnlineAverage(size, scale=4.0)
    squared_norm = online.add(local, reference, 3.0)
    torch.testing.assert_close(online.result().mean, local.double(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(squared_norm, local.square().sum(), rtol=1e-4, atol=0)


def test_an_update_allocates_as_often_whatever_the_size_of_the_model():
    """New tensors for every block leave the heap in pieces: 25 MiB more for a model of 40."""

    class Count(TensorMeter):
        def _count(self, value):
            new.append(value.shape)

    allocated = []
    for size in (_BLOCK, 9 * _BLOCK + 1):
        online, new = OnlineAverage(size, scale=4.0), []
        reference, local = torch.zeros(size), torch.ones(size)
        with Count():
            online.add(local, reference, 3.0)
        allocated.append(len(new))
    assert allocated[0] == allocated[1] > 0


def test_not_finite_updates_show_in_the_norm():
    online = OnlineAverage(3, scale=1.0)
    assert not torch.isfinite(online.add(torch.tensor([0, float("nan"), 0]), torch.zeros(3), 1.0))


@pytest.mark.parametrize(("total", "scale"), [(1, 1), (2, 2), (3, 4), (1000, 1024), (0.3, 0.5)])
def test_weight_scale_is_the_next_power_of_two(total, scale):
    assert weight_scale(total) == scale


@pytest.mark.parametrize("total", [0, -1, float("nan"), float("inf")])
def test_weights_must_sum_to_something(total):
    with pytest.raises(ValueError, match="sum to a positive number"):
        weight_scale(total)


def summed(*rounds: list[list[float]], metrics: dict[str, float] | None = None) -> list[PartialAverage]:
    """Rounds of updates with equal weights, the scale being the cohort's weight."""
    found = []
    for updates in rounds:
        online = OnlineAverage(len(updates[0]), scale=float(len(updates)))
        for update in updates:
            row = torch.tensor(update, dtype=torch.float64)
            online.add(row, torch.zeros_like(row), 1.0)
        found.append(online.result(metrics))
    return found


@pytest.mark.parametrize(("size", "said"), [(499.0, False), (512.0, True), (1e6, True)])
def test_a_mean_beyond_the_range_of_exact_sums_is_right_and_said_once_in_a_run(size, said, caplog):
    """The range ends at 2^53 steps of 2^-44 of the scale: here the scale is the weight, and 2^9 the end."""
    for _ in range(2):  # two runs of one process
        caplog.clear()
        watch = OrderWatch()
        for partial in summed(*[[[0.25, -size]] * 4] * 2):
            watch.look(partial)
            expected = torch.tensor([0.25, -size], dtype=torch.float64)
            torch.testing.assert_close(partial.mean, expected, rtol=1e-15, atol=0)
            assert torch.equal(partial.mean, partial.take_mean())
        assert len(caplog.records) == said
        assert ("its last bits may depend on the order" in caplog.text) == said


STEP = 2.0**-44


@pytest.mark.parametrize(
    "updates",
    [[512.0, STEP, STEP, 0.0], [1024.0, -1024.0, STEP, 0.0]],
    ids=["the sum is large", "the sum is small, for its terms cancel"],
)
def test_beyond_the_range_the_order_shows(updates):
    """Why it is said: a single step is lost beside 2^53 others, and is not where two, or nothing, came before it."""
    rows = [[4 * update] for update in updates]  # of which the mean takes a fourth
    there, back = summed(rows, rows[::-1])
    assert not torch.equal(there.mean, back.mean)


def test_updates_that_may_leave_the_range_are_said_where_they_cancel(caplog):
    (partial,) = summed([[600.0], [-600.0]], metrics={"long_updates": 2.0})
    watch = OrderWatch()
    for _ in range(2):
        watch.look(partial)
    (record,) = caplog.records
    assert record.getMessage().startswith("2 of a round's updates are longer than 500, and the largest element of the ")


def test_partial_averages_of_different_cohorts_are_not_merged():
    online = OnlineAverage(2, scale=2.0)
    with pytest.raises(ValueError, match="different grids"):
        online.merge(OnlineAverage(2, scale=4.0).result())
    with pytest.raises(ValueError, match=r"sums in torch\.float32 and in torch\.float64 cannot be merged"):
        online.merge(OnlineAverage(2, scale=2.0, dtype=torch.float32).result())


@pytest.mark.parametrize("num", [1, 30])
def test_a_float32_sum_is_right_to_its_rounding_however_it_is_put_together(num):
    reference, local, weights = updates(num, 57, 3)
    scale = weight_scale(sum(weights))
    expected = average(reference, local, weights, range(num), scale).mean
    whole, parts = None, []
    for begin in range(0, num, 7):
        part = OnlineAverage(57, scale=scale, dtype=torch.float32)
        for i in range(begin, min(begin + 7, num)):
            part.add(local[i], reference, weights[i])
        parts.append(part.result())
    for part in parts[::-1]:
        whole = merged(whole, part)
    mean = whole.result().mean
    assert mean.dtype == torch.float32
    terms = (local - reference).abs().double().T @ torch.tensor(weights, dtype=torch.float64) / sum(weights)
    assert ((mean - expected).abs() <= (num + 2) * torch.finfo(torch.float32).eps * terms).all()


def test_a_large_sum_in_pages_of_its_own_is_the_same(monkeypatch):
    reference, local, weights = updates(3, _BLOCK + 5, 1)
    scale = weight_scale(sum(weights))
    expected = average(reference, local, weights, range(3), scale)
    monkeypatch.setattr(aggregate_module, "_LARGE", 1)
    assert torch.equal(average(reference, local, weights, range(3), scale).total, expected.total)


@pytest.mark.parametrize("base", [None, torch.linspace(-1, 1, 35).view(5, 7)])
def test_factored_updates_are_the_products_that_they_stand_for(monkeypatch, base):
    monkeypatch.setattr(aggregate_module, "_BLOCK", 2)  # several blocks, of two rows and less
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn((6, 5), generator=generator), torch.randn((6, 7), generator=generator)
    coefficients, kept = torch.rand(6, generator=generator) / 4, torch.tensor(-0.25)
    online = OnlineAverage(40, scale=1.0)
    factors = [
        Factors(left=[left[:2], left[2:3]], coefficients=coefficients[:3], right=right[:3]),
        Factors(left=[left[3:]], coefficients=coefficients[3:], right=right[3:]),
    ]
    online.add_product(factors, base, kept, 3)
    online.add_weight([1.0])
    expected = (left * coefficients[:, None]).T @ right + (0 if base is None else kept * base)
    found = online.result().mean
    torch.testing.assert_close(found[3:38].view(5, 7).float(), expected)
    assert not found[:3].any()
    assert not found[38:].any()
