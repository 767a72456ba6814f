"""What happens to a client's update on its way to the average: clipping, noise, compression."""

from fedsim.transforms.base import Closing, Sending, Transform, Wire
from fedsim.transforms.clip import adaptive_clip, clip
from fedsim.transforms.low_rank import low_rank
from fedsim.transforms.noise import gaussian, local_gaussian
from fedsim.transforms.quantise import qsgd, sign
from fedsim.transforms.sparsify import random_k, top_k

__all__ = [
    "Closing",
    "Sending",
    "Transform",
    "Wire",
    "adaptive_clip",
    "clip",
    "gaussian",
    "local_gaussian",
    "low_rank",
    "qsgd",
    "random_k",
    "sign",
    "top_k",
]
