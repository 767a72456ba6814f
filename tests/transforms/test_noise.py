"""Noise: its deviation on the mean and on each update, and where it comes from."""

import pytest
import torch

import fedsim.transforms.noise as noise_module
from fedsim.transforms import Closing, gaussian, local_gaussian
from fedsim.transforms.noise import update_noise


def close(transform, size, *, round=1, seed=0, clip_norm=2.0, cohort_size=50.0, count_noise=None):
    closing = Closing(
        seed=seed,
        round=round,
        purpose="noise",
        cohort_size=cohort_size,
        state={},
        sums={},
        noise_multiplier=transform.noise_multiplier,
        clip_norm=clip_norm,
        count_noise=count_noise,
    )
    return transform.finish(torch.ones(size, dtype=torch.float64), closing)


def test_the_means_noise_is_z_times_the_norm_over_the_cohort(monkeypatch):
    """1.5 * 2 / 50 = 0.06; of 200,000 elements the deviation is off by at most 5 / sqrt(2 * 200,000)."""
    monkeypatch.setattr(noise_module, "_BLOCK", 70_000)
    noise = close(gaussian(1.5), 200_000) - 1.0
    assert noise.std().item() == pytest.approx(0.06, rel=0.008)
    assert noise.mean().item() == pytest.approx(0.0, abs=5 * 0.06 / 200_000**0.5)
    blocks = noise[:70_000], noise[70_000:140_000]
    assert abs(torch.corrcoef(torch.stack(blocks))[0, 1].item()) < 5 / 70_000**0.5, "blocks do not repeat each other"


def test_a_count_takes_its_share_of_the_noise_multiplier():
    """z = 1, sigma_b = 1: z_Delta^-2 = 1 - 1/4, so z_Delta = 1.1547, and both together are z again."""
    found = update_noise(1.0, 1.0)
    assert found == pytest.approx((3 / 4) ** -0.5)
    assert (found**-2 + (2 * 1.0) ** -2) ** -0.5 == pytest.approx(1.0)
    assert update_noise(0.7, None) == 0.7
    noise = close(gaussian(1.0), 200_000, count_noise=1.0) - 1.0
    assert noise.std().item() == pytest.approx(found * 2 / 50, rel=0.008)
    with pytest.raises(ValueError, match=r"count_noise=0.4 alone spends more .*count_noise above 0.5"):
        update_noise(1.0, 0.4)


def test_noise_is_a_function_of_seed_and_round():
    first = close(gaussian(1.0), 100)
    assert torch.equal(first, close(gaussian(1.0), 100))
    assert not torch.equal(first, close(gaussian(1.0), 100, round=2))
    assert not torch.equal(first, close(gaussian(1.0), 100, seed=1))


def test_local_noise_is_each_clients_own(send):
    """Rows of norm 10 clipped to 2, plus deviation 0.5 * 2."""
    rows = torch.zeros(3, 100_000)
    rows[:, 0] = 10.0
    found = send(local_gaussian(2.0, 0.5), rows, clients=[4, 7, 9])
    assert found[:, 1:].std(1).tolist() == pytest.approx([1.0] * 3, rel=0.012)
    assert found[:, 0].mean().item() == pytest.approx(2.0, abs=3.0)
    assert abs(torch.corrcoef(found[:, 1:])[0, 1].item()) < 5 / 100_000**0.5
    assert torch.equal(send(local_gaussian(2.0, 0.5), rows[1:2], clients=[7])[0], found[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian(0.0), "noise_multiplier must be positive"),
        (lambda: gaussian(1.0, delta=1.0), r"delta must be in \(0, 1\)"),
        (lambda: local_gaussian(max_norm=0.0), "max_norm must be positive"),
        (lambda: local_gaussian(noise_multiplier=0.0), "noise_multiplier must be positive"),
        (lambda: local_gaussian(delta=0.0), "delta must be in"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
