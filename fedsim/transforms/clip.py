"""Clipping of whole updates by their Euclidean norm, buffers included, so that the bound holds for all that is sent."""

import math

import torch
from torch import Tensor

from fedsim.transforms.base import Closing, Sending, State, Transform


def clip_rows_(rows: Tensor, max_norm: Tensor | float) -> Tensor:
    """Scale longer rows (F, S) down to `max_norm`, in place; (F,) whether a row was longer."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    factor = (max_norm / norms.clamp(min=1e-300)).clamp_(max=1.0)
    rows.mul_(factor[:, None].to(rows.dtype))
    return norms > max_norm


def clip(max_norm: float = 1.0) -> Transform:
    """Updates longer than a fixed norm are scaled down to it (McMahan et al. 2018, "Learning Differentially Private
    Recurrent Language Models", flat clipping).

    Args:
        max_norm: S of the paper, positive.
    """
    if not max_norm > 0:
        raise ValueError(f"transforms.clip.max_norm must be positive, got {max_norm}")

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        sending.count("clipped", clip_rows_(rows, max_norm).sum())
        return rows

    return Transform(
        name="clip",
        apply=apply,
        bound=lambda state: max_norm,
        figures=lambda state, sums: {"clipped": int(sums.get("clipped", 0))},
    )


def adaptive_clip(
    quantile: float = 0.5, initial_norm: float = 0.1, learning_rate: float = 0.2, count_noise: float | None = None
) -> Transform:
    """Clipping by a norm that follows a quantile of the updates' norms: Andrew et al. 2021, "Differentially Private
    Learning with Adaptive Clipping", algorithm 1.

    Each client tells whether its norm is at most C; the server moves C <- C exp(-eta (b - gamma)) by the noisy share
    b of those. In a private run a client counts as 1/2 or -1/2 and the count has 1/2 added again, as in the proof of
    theorem 1: only then does a client that comes or stays away move the count by no more than 1/2. So whoever was
    expected and did not come counts as a half.

    Args:
        quantile: gamma, in [0, 1].
        initial_norm: C of the first round, positive.
        learning_rate: eta_C, not negative.
        count_noise: sigma_b, standard deviation of the noise on the number of clients with b = 1. None: 1/20 of the
            clients of a round, as the paper has it, where `gaussian` makes the run private, else none. The count
            is then a part of what the noise multiplier z buys: the updates get the noise z_Delta with
            z^-2 = z_Delta^-2 + (2 sigma_b)^-2 (`fedsim.transforms.noise`).
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"transforms.adaptive_clip.quantile must be in [0, 1], got {quantile}")
    if not initial_norm > 0:
        raise ValueError(f"transforms.adaptive_clip.initial_norm must be positive, got {initial_norm}")
    if not learning_rate >= 0:
        raise ValueError(f"transforms.adaptive_clip.learning_rate must not be negative, got {learning_rate}")
    if count_noise is not None and not count_noise >= 0:
        raise ValueError(f"transforms.adaptive_clip.count_noise must not be negative, got {count_noise}")

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        longer = clip_rows_(rows, float(sending.state["norm"]))
        sending.count("clipped", longer.sum())
        sending.count("unclipped", (~longer).sum())
        return rows

    def server_step(closing: Closing) -> State:
        noise = torch.randn((), generator=closing.generator(torch.device("cpu")), dtype=torch.float64).item()
        longer, shorter = (closing.sums.get(name, 0.0) for name in ("clipped", "unclipped"))
        # without privacy: of those that came
        clients = closing.cohort_size if closing.noise_multiplier else max(1.0, longer + shorter)
        share = 0.5 + ((shorter - longer) / 2 + (closing.count_noise or 0.0) * noise) / clients
        return {"norm": closing.state["norm"] * math.exp(-learning_rate * (share - quantile))}

    def deviation(cohort_size: float, noise_multiplier: float) -> float:
        if count_noise is not None:
            return count_noise
        return cohort_size / 20 if noise_multiplier else 0.0

    return Transform(
        name="adaptive_clip",
        apply=apply,
        server_init=lambda: {"norm": torch.tensor(initial_norm, dtype=torch.float64)},
        server_step=server_step,
        bound=lambda state: float(state["norm"]),
        count_noise=deviation,
        figures=lambda state, sums: {"clip_norm": float(state["norm"]), "clipped": int(sums.get("clipped", 0))},
    )
