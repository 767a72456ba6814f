"""Feature skew: transformed copies of stored samples, each client's in its own way (`fedsim.data.partition.features`).

A skew is a plain dictionary, {"name": "feature_noise", "variance": v} or {"name": "rotation", "angles": [...]}, which
lies in the file of a partition, so that a replay transforms the samples alike. The copies are in memory, in the type
of the originals; bytes are rounded and clipped to 0 ... 255. They are the same on every machine: what libraries round
differently is drawn or put on a grid in float64, and the rest are single operations that IEEE 754 rounds alike.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federated import Split
from fedsim.rng import stream

_CHUNK = 4096  # samples made floating-point at once
_GRID = 2.0**32  # to the inverse of which a cosine is rounded: it differs between C libraries in the 53rd bit


def apply_skew(skew: dict[str, Any], split: Split, seed: int, purpose: str) -> Tensor:
    """The split's inputs, transformed; rows that nobody owns are unchanged.

    Args:
        skew: see above.
        split: with owners.
        seed: of what is drawn.
        purpose: the name of the split, which keeps its draws apart from those of another.

    Returns:
        (N, ...), in the type of the split's inputs.

    Raises:
        ValueError: the inputs are no numbers to add noise to, or no pictures to turn.
    """
    return _SKEWS[skew["name"]](skew, split, seed, purpose)


def _owner_of_rows(split: Split) -> np.ndarray:
    """(N,) int64: each row's client, -1 where it has none."""
    owner = np.full(len(split.inputs), -1, dtype=np.int64)
    rows = np.arange(split.num_samples) if split.order is None else split.order[: split.num_samples]
    owner[rows] = np.repeat(np.arange(split.num_clients), split.sizes)
    return owner


def _feature_noise(skew: dict[str, Any], split: Split, seed: int, purpose: str) -> Tensor:
    inputs = split.inputs
    in_bytes = inputs.dtype == torch.uint8
    if not (in_bytes or inputs.is_floating_point()):
        raise ValueError(f"partition=feature_noise needs pictures or floating-point inputs, not {inputs.dtype}")
    # Client c adds a variance of (c + 1) / C times the greatest; a row without an owner, client -1, adds none.
    deviation = np.sqrt(skew["variance"] * (_owner_of_rows(split) + 1) / split.num_clients)
    rng = stream(seed, f"feature_noise_{purpose}")
    noisy = torch.empty_like(inputs)
    for start in range(0, len(inputs), _CHUNK):
        part = inputs[start : start + _CHUNK]
        # Machines agree on float64 draws but for the last bit of a few in the tails, of which float32 knows nothing.
        scale = deviation[start : start + _CHUNK].reshape(-1, *[1] * (part.ndim - 1))
        noise = torch.from_numpy((rng.standard_normal(part.shape) * scale).astype(np.float32))
        if in_bytes:  # a byte b is the number b / 255
            noisy[start : start + _CHUNK] = (part.float() + 255 * noise).round_().clamp_(0, 255).to(torch.uint8)
        else:
            noisy[start : start + _CHUNK] = part + noise
    return noisy


def _rotation(skew: dict[str, Any], split: Split, seed: int, purpose: str) -> Tensor:
    inputs, angles = split.inputs, skew["angles"]
    if inputs.ndim not in (3, 4) or not (inputs.dtype == torch.uint8 or inputs.is_floating_point()):
        raise ValueError(
            f"partition=rotation needs pictures (N, height, width) or (N, channels, height, width), not "
            f"{tuple(inputs.shape)} of {inputs.dtype}"
        )
    owner = _owner_of_rows(split)
    turned = inputs.clone()
    for which, angle in enumerate(angles):
        rows = np.flatnonzero((owner >= 0) & (owner % len(angles) == which))
        for start in range(0, len(rows), _CHUNK):
            chosen = torch.from_numpy(rows[start : start + _CHUNK])
            turned[chosen] = rotate(inputs[chosen], angle)
    return turned


def rotate(pictures: Tensor, angle: float) -> Tensor:
    """Pictures (n, ..., height, width) turned anticlockwise by an angle in degrees, in their own type.

    Quarter turns of square pictures move pixels; other turns interpolate bilinearly, and continue the picture's edge
    where nothing else is.
    """
    height, width = pictures.shape[-2:]
    quarters, rest = divmod(angle, 90)
    if rest == 0 and (height == width or quarters % 2 == 0):
        return torch.rot90(pictures, int(quarters), dims=(-2, -1))
    turn = math.radians(angle)
    cosine, sine = (round(value * _GRID) / _GRID for value in (math.cos(turn), math.sin(turn)))
    # From a pixel of the result to the place of the original that it shows, in pixels, y downwards.
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    across = (cosine * x - sine * y + (width - 1) / 2).clamp_(0, width - 1)
    down = (sine * x + cosine * y + (height - 1) / 2).clamp_(0, height - 1)
    left, above = across.floor(), down.floor()
    flat = pictures.reshape(len(pictures), -1, height * width).double()
    shown = torch.zeros_like(flat)
    for column, of_column in ((left, 1 - (across - left)), (left + 1, across - left)):
        for row, of_row in ((above, 1 - (down - above)), (above + 1, down - above)):
            place = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
            shown += flat[:, :, place.long().flatten()] * (of_row * of_column).flatten()
    if pictures.dtype == torch.uint8:
        shown = shown.round_().clamp_(0, 255)
    return shown.to(pictures.dtype).reshape(pictures.shape)


_SKEWS: dict[str, Callable[[dict[str, Any], Split, int, str], Tensor]] = {
    "feature_noise": _feature_noise,
    "rotation": _rotation,
}
