"""Glyphs: the dataset that comes with the program, a generated stand-in for LEAF's FEMNIST (Caldas et al. 2018).

Like FEMNIST it has up to 3,550 writers of 62 characters at 28x28, dark ink on white paper, with FEMNIST's number of
samples a writer and share of digits. Unlike FEMNIST it is no handwriting: the centre lines of hand-printed and printed
letters (`letterforms`) are bent, slanted and traced with each writer's own pen. A writer has a style, a form of each
character of their own, and a jitter between samples.

What writer w draws depends on (seed, w) alone, and is the same on every machine: what libraries round differently is
put on a grid before it is used, sums are exact on that grid, and the rest are single operations that IEEE 754 rounds
alike everywhere.
"""

import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.data.cache import cache_root, create_array, packed
from fedsim.data.deal.base import offsets_of
from fedsim.data.federated import FederatedDataset, Normalise, Split
from fedsim.data.letterforms import CHARACTERS, NUM_FORMS, TABLE, UNITS, tables
from fedsim.data.threads import single_threads
from fedsim.rng import stream

NUM_WRITERS, SIDE = 3550, 28
VERSION = 2  # counts up whenever any pixel changes, so that an old cache is not taken for a new one

# The share of writers who start from each form (`letterforms`): the two hands, then the fonts, of which upright
# sans-serif letters are the nearest to hand printing.
_FORM_SHARES = (0.28, 0.22, 0.12, 0.12, 0.06, 0.06, 0.04, 0.03, 0.03, 0.02, 0.02)

_NOTE = (
    "femnist is a generated stand-in for LEAF's FEMNIST, drawn from letter forms, not real handwriting, so its "
    "accuracies do not compare with published ones; for the real one set data.source=leaf and "
    "data.root=<folder with LEAF's femnist train/ and test/>"
)

# FEMNIST's samples a writer (LEAF's own table): a gamma distribution with that mean and deviation.
_MEAN_COUNT, _STD_COUNT, _MIN_COUNT = 226.83, 88.94, 20
# NIST's writers filled in a form and copied an English text: 49.5 % of the samples are digits, 27 % capitals, 23.5 %
# small letters, and the letters lie between evenly spread and as frequent as in English (A to Z, of 1,000).
_ENGLISH = "82 15 28 43 127 22 20 61 70 2 8 40 24 67 75 19 1 60 63 91 28 10 24 2 20 1"
_LETTERS = 0.5 / 26 + 0.5 * np.array(_ENGLISH.split(), dtype=float) / sum(map(int, _ENGLISH.split()))
_MIX = np.concatenate([0.495 * np.full(10, 0.1), 0.27 * _LETTERS, 0.235 * _LETTERS])
_CONCENTRATION = 150.0  # of the Dirichlet draw of a writer's own class mix


def glyphs(
    *, num_clients: int = NUM_WRITERS, seed: int = 0, test_fraction: float = 0.1, cache_dir: str | Path | None = None
) -> FederatedDataset:
    """Generated characters, one client a writer; the first call draws them into the cache.

    Args:
        num_clients: writers, 1 to 3,550; the first ones are the same whatever the number.
        seed: of everything that is drawn, 0 or more.
        test_fraction: share of each writer's samples held out for tests, in (0, 1); one at least stays on either side.
        cache_dir: folder of the caches; None for the default of `fedsim.data.cache.cache_root`.

    Returns:
        Inputs (N, 1, 28, 28) uint8, 255 for white paper; targets (N,) int64 in FEMNIST's order 0-9, A-Z, a-z.

    Raises:
        ValueError: an argument is out of range, or the cache cannot be written.
    """
    if not 1 <= num_clients <= NUM_WRITERS:
        raise ValueError(f"data.num_clients is {num_clients}: choose 1 to {NUM_WRITERS} writers")
    if not 0 < test_fraction < 1:
        raise ValueError(f"data.test_fraction is {test_fraction}: choose a number between 0 and 1, such as 0.1")
    if seed < 0:
        raise ValueError(f"seed is {seed}: choose 0 or more")
    name = f"glyphs-v{VERSION}-writers{num_clients}-seed{seed}-test{float(test_fraction)}"
    build = functools.partial(_draw_all, num_writers=num_clients, seed=seed, test_fraction=test_fraction)
    arrays, _ = packed(cache_root(cache_dir) / name, build)
    splits = {}
    for part in ("train", "test"):
        inputs, targets = (torch.from_numpy(arrays[f"{part}_{kind}"]) for kind in ("inputs", "targets"))
        splits[part] = Split(inputs=inputs, targets=targets, offsets=np.array(arrays[f"{part}_offsets"]))
    return FederatedDataset(
        name="femnist",
        **splits,
        client_ids=[f"writer_{writer:04d}" for writer in range(num_clients)],
        num_classes=len(CHARACTERS),
        preprocess=Normalise(mean=(0.898,), std=(0.231,)),  # measured over 500 writers; paper is 1
        source="glyphs",
        notes=(_NOTE,),
    )


def _draw_all(folder: Path, *, num_writers: int, seed: int, test_fraction: float) -> dict[str, int]:
    """Draw all writers into memory-mapped arrays in `folder`; see `packed`."""
    logging.getLogger(__name__).info("drawing %d writers' characters, once, into %s", num_writers, folder.parent)
    counts = np.array([_count(seed, writer) for writer in range(num_writers)])
    held_out = np.clip(np.rint(counts * test_fraction).astype(np.int64), 1, counts - 1)
    inputs, targets, offsets = {}, {}, {}
    for part, sizes in {"test": held_out, "train": counts - held_out}.items():
        offsets[part] = offsets_of(sizes)
        total = int(sizes.sum())
        np.save(folder / f"{part}_offsets.npy", offsets[part])
        inputs[part] = create_array(folder / f"{part}_inputs.npy", np.uint8, (total, 1, SIDE, SIDE))
        targets[part] = create_array(folder / f"{part}_targets.npy", np.int64, (total,))

    def draw(writer: int) -> None:
        images, classes = _draw_writer(seed, writer, int(counts[writer]))
        # Samples are independent draws, so any of them may be the ones held out.
        for part, rows in {"test": slice(held_out[writer]), "train": slice(held_out[writer], None)}.items():
            start, stop = offsets[part][writer : writer + 2]
            inputs[part][start:stop, 0] = images[rows]
            targets[part][start:stop] = classes[rows]

    tables()  # before the others, or each would make its own
    with single_threads() as pool:
        list(pool.map(draw, range(num_writers)))
    return {"num_writers": num_writers, "num_samples": int(counts.sum())}


def _count(seed: int, writer: int) -> int:
    shape = (_MEAN_COUNT / _STD_COUNT) ** 2
    return max(_MIN_COUNT, round(stream(seed, "glyphs.count", client=writer).gamma(shape, _MEAN_COUNT / shape)))


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one writer writes. Lengths are in half images (14 pixels) unless they are said to be in pixels.

    Attributes:
        mix: (62,) the writer's class probabilities.
        forms: (62,) int64: number of the form that the writer gives each character.
        shape: (5,) slant (shear), rotation (radians), log height, log width, log of the pen's radius in pixels.
        offset: (2,) where the writer sets the middle of a character, right and down.
        warp: (62, 3, T) what the writer makes of each character: displacement right and down, and pressure,
            as coefficients of the smooth functions in `_basis`.
        softness: width of the stroke's edge in pixels.
        contrast: darkness of the ink, 0 to 1.
        noise: range of the uniform noise on each pixel, paper being 1 and black 0.
        shakiness: how far samples differ from one another, 1 on average.
    """

    mix: np.ndarray
    forms: np.ndarray
    shape: np.ndarray
    offset: np.ndarray
    warp: np.ndarray
    softness: float
    contrast: float
    noise: float
    shakiness: float


_SHAPE_MEAN = np.array([0.08, 0.0, 0.0, -0.05, math.log(1.0)])
_SHAPE_STD = np.array([0.16, 0.06, 0.12, 0.14, 0.25])  # between writers
_SHAPE_JITTER = np.array([0.1, 0.07, 0.08, 0.1, 0.08])  # between one writer's samples
_SHAPE_LOW = np.array([-0.3, -0.25, -0.35, -0.35, math.log(0.6)])  # beyond these nobody could read it
_SHAPE_HIGH = np.array([0.5, 0.25, 0.35, 0.35, math.log(1.9)])
_PRESSURE = (0.55, 1.6)
_BITS = 9  # of the grid of both factors: sums below 64 are then exact in float32, and no sum reaches 20
_OFFSET_STD, _OFFSET_JITTER = 0.04, 0.07
_FREQUENCIES = np.array([(i, j) for i in range(4) for j in range(4) if i + j > 0])
_WARP_DECAY = np.hypot(*_FREQUENCIES.T) ** -1.6 * np.array([[1.0], [1.0], [2.0]])  # of each kind and term
_WARP_STD, _WARP_FORM, _WARP_JITTER = 0.04, 0.08, 0.05  # between writers, their characters, and samples


def style(seed: int, writer: int) -> tuple[Style, np.random.Generator]:
    """The style of `writer`, and the generator from which the writer's samples are drawn after it."""
    rng = stream(seed, "glyphs.writer", client=writer)
    own, *borrowed = rng.choice(NUM_FORMS, 1 + len(CHARACTERS), p=_FORM_SHARES)
    warp = _WARP_FORM * rng.standard_normal((len(CHARACTERS), *_WARP_DECAY.shape))
    warp += _WARP_STD * rng.standard_normal(_WARP_DECAY.shape)
    return Style(
        mix=rng.dirichlet(_MIX * _CONCENTRATION),
        forms=np.where(rng.random(len(CHARACTERS)) < 0.3, borrowed, own),
        shape=_SHAPE_MEAN + _SHAPE_STD * rng.standard_normal(5),
        offset=_OFFSET_STD * rng.standard_normal(2),
        warp=warp * _WARP_DECAY,
        softness=rng.uniform(0.8, 1.6),
        contrast=rng.uniform(0.7, 1.0),
        noise=rng.uniform(0.0, 0.2),
        shakiness=min(1.6, math.exp(0.3 * rng.standard_normal())),
    ), rng


def _draw_writer(seed: int, writer: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28) uint8 and classes (count,) int64 of one writer."""
    own, rng = style(seed, writer)
    classes = rng.choice(len(CHARACTERS), count, p=own.mix)
    shape = own.shape + own.shakiness * _SHAPE_JITTER * rng.standard_normal((count, 5))
    offset = own.offset + own.shakiness * _OFFSET_JITTER * rng.standard_normal((count, 2))
    shaky = own.shakiness * _WARP_JITTER * _WARP_DECAY
    warp = own.warp[classes] + shaky * rng.standard_normal((count, *_WARP_DECAY.shape))
    noise = torch.frombuffer(bytearray(rng.bytes(count * SIDE * SIDE)), dtype=torch.uint8).view(count, -1)
    forms = own.forms[classes] * len(CHARACTERS) + classes
    linear, offset, size, radius = _placed(shape.clip(_SHAPE_LOW, _SHAPE_HIGH), offset, tables().extents[forms])

    # Where each pixel lies on the letter: the inverse of (stretch, slant, rotate, move), and the warp.
    coefficients = np.concatenate([np.zeros((count, 3, 3)), warp], axis=2)
    coefficients[:, :2, 0] = -np.einsum("nij,nj->ni", linear, offset)
    coefficients[:, :2, 1:3] = linear
    fields = (_on_grid(coefficients, _BITS).view(count * 3, -1) @ _basis()).view(count, 3, -1)

    # How far each pixel is from the pen's path, in pixels, and so how much ink it has.
    place = fields[:, :2].add(1).mul_(TABLE / 2).clamp_(0, TABLE - 1).to(torch.int32)
    index = place[:, 1].mul_(TABLE).add_(place[:, 0]).add_(torch.from_numpy(forms.astype(np.int32) * TABLE**2)[:, None])
    distance = tables().distances.index_select(0, index.flatten()).view(count, -1).float()
    distance.mul_(_on_grid(size / own.softness / UNITS, 16)[:, None])
    ink = fields[:, 2].add(1).clamp_(*_PRESSURE).mul_(_on_grid(radius / own.softness, 8)[:, None])
    ink.sub_(distance).add_(0.5).clamp_(0, 1)
    paper = noise.float().sub_(127.5).mul_(round(own.noise * 256) / 256).add_(255)
    image = paper.sub_(ink.mul_(round(own.contrast * 255)))
    return image.round_().clamp_(0, 255).to(torch.uint8).view(count, SIDE, SIDE).numpy(), classes


def _placed(
    shape: np.ndarray, offset: np.ndarray, extents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit characters to the paper, as a writer does.

    Args:
        shape: (n, 5) as in `Style`.
        offset: (n, 2) as in `Style`.
        extents: (n, 2) half the width and height of the character's form, in half images.

    Returns:
        (n, 2, 2) from a place on the image to that on the form; (n, 2) offset; (n,) size of the character by its
        form's; (n,) radius of the pen in pixels, finer for small characters, whose loops it would fill.
    """
    slant, angle, height, width = shape[:, 0], shape[:, 1], np.exp(shape[:, 2]), np.exp(shape[:, 3])
    tall = extents[:, 1] * height
    radius = np.minimum(np.exp(shape[:, 4]), np.maximum(0.7, 0.22 * SIDE / 2 * tall))
    room = 0.96 - radius / (SIDE / 2)
    cos, sin = np.cos(angle), np.sin(angle)
    forward = np.abs(np.stack([cos, sin - slant * cos, sin, cos + slant * sin], axis=1).reshape(-1, 2, 2))
    reach = np.einsum("nij,nj->ni", forward, extents * np.stack([width, height], axis=1))
    fit = np.minimum(1, room / reach.max(axis=1))
    free = np.maximum(room[:, None] - reach * fit[:, None], 0)
    rows = np.stack([cos + slant * sin, -sin + slant * cos, sin, cos], axis=1).reshape(-1, 2, 2)
    linear = rows / (fit[:, None] * np.stack([width, height], axis=1))[:, :, None]
    return linear, offset.clip(-free, free), fit * np.sqrt(width * height), radius


def _on_grid(values: np.ndarray, bits: int) -> Tensor:
    """float32, rounded to multiples of 2 ** -bits: what machines round differently in the last place becomes equal."""
    return torch.from_numpy((np.rint(values * 2**bits) / 2**bits).astype(np.float32))


@functools.cache
def _basis() -> Tensor:
    """(3 + T, 784) float32 functions on the image: 1, x, y (from -1 to 1), then products of cosines."""
    line = (np.arange(SIDE) + 0.5) / SIDE
    y, x = np.meshgrid(line, line, indexing="ij")
    waves = [np.cos(np.pi * i * x) * np.cos(np.pi * j * y) for i, j in _FREQUENCIES]
    return _on_grid(np.stack([np.ones_like(x), 2 * x - 1, 2 * y - 1, *waves]), _BITS).flatten(1)
