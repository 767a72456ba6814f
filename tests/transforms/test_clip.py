"""Clipping: norms after it, and the quantile that the adaptive one finds."""

import math

import pytest
import torch

from fedsim.transforms import Closing, adaptive_clip, clip


def test_longer_rows_get_the_norm_and_shorter_ones_stay(send):
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    sums = {}
    found = send(clip(1.0), rows, sums=sums)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert sums["clipped"].item() == 1
    assert clip(1.0).figures({}, {"clipped": 1.0}) == {"clipped": 1}


def closing(state, below, above, *, cohort_size, noise_multiplier=0.0, count_noise=None):
    return Closing(
        seed=0,
        round=1,
        purpose="clip",
        cohort_size=cohort_size,
        state=state,
        sums={"unclipped": below, "clipped": above},
        noise_multiplier=noise_multiplier,
        clip_norm=float(state["norm"]),
        count_noise=count_noise,
    )


def test_the_norm_moves_by_the_papers_formula():
    """C exp(-eta (b - gamma)): 3 of 4 below, gamma 0.5, eta 0.2."""
    transform = adaptive_clip(quantile=0.5, initial_norm=2.0, learning_rate=0.2)
    state = transform.server_step(closing(transform.server_init(), 3.0, 1.0, cohort_size=4))
    assert float(state["norm"]) == pytest.approx(2.0 * math.exp(-0.2 * (0.75 - 0.5)))


def test_the_norm_finds_the_quantile_from_far_below(send):
    """Norms of 1 ... 100: their 80% quantile is 80."""
    transform = adaptive_clip(quantile=0.8, initial_norm=0.1, learning_rate=0.2)
    rows, state = torch.arange(1.0, 101.0)[:, None], transform.server_init()
    for _ in range(150):
        sums = {}
        found = send(transform, rows, sums=sums, state=state)
        assert found.max() <= float(state["norm"]) * (1 + 1e-6)
        figures = {name: float(value) for name, value in sums.items()}
        state = transform.server_step(closing(state, figures["unclipped"], figures["clipped"], cohort_size=100))
    assert float(state["norm"]) == pytest.approx(80, abs=2)


def test_a_private_count_is_divided_by_the_expected_cohort_and_noisy():
    """8 of 10 that came are below, 20 were expected: 1/2 + (8 - 2) / 2 / 20 = 0.65; the noise has the deviation that
    was asked for."""
    transform = adaptive_clip(quantile=0.5, initial_norm=1.0, learning_rate=1.0, count_noise=3.0)
    assert transform.count_noise(20.0, 1.0) == 3.0
    assert adaptive_clip().count_noise(20.0, 1.0) == 1.0
    assert adaptive_clip().count_noise(20.0, 0.0) == 0.0
    found = []
    for round in range(1, 2001):
        end = closing(transform.server_init(), 8.0, 2.0, cohort_size=20, noise_multiplier=1.0, count_noise=3.0)
        end = type(end)(**{**vars(end), "round": round})
        found.append(0.5 - math.log(float(transform.server_step(end)["norm"])))
    shares = torch.tensor(found)
    assert shares.mean().item() == pytest.approx(0.65, abs=5 * 3 / 20 / 2000**0.5)
    assert shares.std().item() == pytest.approx(3 / 20, rel=0.1)


@pytest.mark.parametrize("came", [(0.0, 0.0), (8.0, 2.0), (3.0, 9.0)])
def test_one_client_more_or_less_moves_a_private_count_by_a_half(came):
    """Which is what the noise on it is counted for (`update_noise`: 2 sigma_b): the same noise, one client more."""
    transform = adaptive_clip(quantile=0.5, initial_norm=1.0, learning_rate=1.0, count_noise=3.0)

    def count(below, above):
        end = closing(transform.server_init(), below, above, cohort_size=20, noise_multiplier=1.0, count_noise=3.0)
        return -20 * math.log(float(transform.server_step(end)["norm"]))

    below, above = came
    assert count(below + 1, above) - count(below, above) == pytest.approx(0.5)
    assert count(below, above + 1) - count(below, above) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip(0.0), "clip.max_norm must be positive"),
        (lambda: adaptive_clip(quantile=1.2), r"quantile must be in \[0, 1\]"),
        (lambda: adaptive_clip(initial_norm=0), "initial_norm must be positive"),
        (lambda: adaptive_clip(learning_rate=-1), "learning_rate must not be negative"),
        (lambda: adaptive_clip(count_noise=-1), "count_noise must not be negative"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
