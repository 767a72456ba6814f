"""Gaussian noise for differential privacy of clients: central (the server adds it to the sum) and local (each client
adds it to its update).

Central: McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", algorithm 1 with equal
weights and the estimator of a fixed denominator. Every client counts the same, and the mean is the sum of the clipped
updates plus N(0, (z C)^2) over the number of clients of a round (its expectation under Poisson sampling), whoever
came. `fedsim.privacy` says which epsilon this buys. What is protected is the model and what follows from it; metrics
such as the training loss are for the person who runs the simulation and are computed without noise.
"""

import torch
from torch import Tensor

from fedsim.transforms.base import Closing, Sending, Transform, Wire
from fedsim.transforms.clip import clip_rows_

# Elements of noise drawn at once, in float64.
_BLOCK = 1 << 20


def gaussian(noise_multiplier: float = 1.0, delta: float | None = None) -> Transform:
    """Noise of the server on the sum of the updates. It needs `clip` or `adaptive_clip` as the last change before it.

    Args:
        noise_multiplier: z, standard deviation in units of the clipping norm, positive. With an adaptive clipping the
            count takes a share: the sum gets z_Delta = (z^-2 - (2 sigma_b)^-2)^-1/2 (Andrew et al. 2021, theorem 1).
        delta: of (epsilon, delta); None: C ** -1.1 for C clients.
    """
    if not noise_multiplier > 0:
        raise ValueError(f"transforms.gaussian.noise_multiplier must be positive, got {noise_multiplier}")
    if delta is not None and not 0 < delta < 1:
        raise ValueError(f"transforms.gaussian.delta must be in (0, 1) or null, got {delta}")

    def finish(mean: Tensor, closing: Closing) -> Tensor:
        assert closing.clip_norm is not None, "checked when the run was put together"
        multiplier = update_noise(noise_multiplier, closing.count_noise)
        deviation = multiplier * closing.clip_norm / closing.cohort_size
        generator = closing.generator(mean.device)
        for start in range(0, len(mean), _BLOCK):
            part = mean[start : start + _BLOCK]
            # the same draws whatever the mean's dtype
            noise = torch.randn(len(part), generator=generator, dtype=torch.float64, device=mean.device)
            part.add_(noise, alpha=deviation)
        return mean

    return Transform(name="gaussian", finish=finish, noise_multiplier=noise_multiplier, delta=delta, scatters=True)


def update_noise(noise_multiplier: float, count_noise: float | None) -> float:
    """z_Delta: the multiplier of the noise on the updates, where a count with noise `count_noise` takes its share.

    Args:
        noise_multiplier: z.
        count_noise: sigma_b; None: there is no count.

    Raises:
        ValueError: the count alone spends more privacy than z allows.
    """
    if count_noise is None:
        return noise_multiplier
    if 2 * count_noise <= noise_multiplier:
        raise ValueError(
            f"transforms: the count of adaptive_clip with count_noise={count_noise:g} alone spends more privacy than "
            f"noise_multiplier={noise_multiplier:g} allows: set transforms.adaptive_clip.count_noise above "
            f"{noise_multiplier / 2:g}, or raise server.clients_per_round"
        )
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def local_gaussian(max_norm: float = 1.0, noise_multiplier: float = 1.0, delta: float | None = None) -> Transform:
    """Each client clips its update and adds noise to it before it is sent (local differential privacy).

    Args:
        max_norm: C, the clipping norm, positive.
        noise_multiplier: standard deviation in units of C, positive. Two updates of one client are at most 2 C apart.
        delta: of (epsilon, delta); None: C ** -1.1 for C clients.
    """
    if not max_norm > 0:
        raise ValueError(f"transforms.local_gaussian.max_norm must be positive, got {max_norm}")
    if not noise_multiplier > 0:
        raise ValueError(f"transforms.local_gaussian.noise_multiplier must be positive, got {noise_multiplier}")
    if delta is not None and not 0 < delta < 1:
        raise ValueError(f"transforms.local_gaussian.delta must be in (0, 1) or null, got {delta}")

    def apply(rows: Tensor, sending: Sending) -> Tensor:
        sending.count("clipped", clip_rows_(rows, max_norm).sum())
        for client, row in zip(sending.clients, rows, strict=True):
            generator = sending.generator(client, row.device)
            noise = torch.randn(len(row), generator=generator, dtype=row.dtype, device=row.device)
            row.add_(noise, alpha=noise_multiplier * max_norm)
        return rows

    def wire(wire: Wire) -> Wire:
        return wire.as_dense()  # noise leaves no zero and no level as it was

    return Transform(
        name="local_gaussian",
        apply=apply,
        wire=wire,
        local_noise_multiplier=noise_multiplier,
        delta=delta,
        scatters=True,
        figures=lambda state, sums: {"clipped": int(sums.get("clipped", 0))},
    )
