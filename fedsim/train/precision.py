"""The arithmetic of local steps: full float32, TF32 products, or bfloat16 under autocast.

Vectors, gradients' sums, optimizers and averages are float32 in all of them; evaluation always is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

PRECISIONS = ("float32", "tf32", "bf16")


def check(precision: str, device: torch.device) -> None:
    """Refuse what does not exist, or not on this device.

    Raises:
        ValueError: says what there is.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r} does not exist; choose one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"trainer.precision=tf32 is of NVIDIA GPUs, and this run is on the {device.type}: use float32 or bf16"
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Around a model's forward pass. Its outputs may then be bfloat16."""
    # without a cache, in which a recorded step would find weights of another step
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """How a GPU multiplies float32 matrices and convolves, inside; PyTorch's own default convolves in TF32."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old
