"""Glyphs: the dataset that comes with the program, a generated stand-in for LEAF's FEMNIST (Caldas et al. 2018).

Like FEMNIST it has up to 3,550 writers of 62 characters at 28x28, dark ink on white paper, with FEMNIST's number of
samples a writer and share of digits. Unlike FEMNIST it is no handwriting: the centre lines of printed letters (from
the fonts that matplotlib carries) are bent, slanted and traced with each writer's own pen. A writer has a style, a
form of each character of their own, and a jitter between samples. What writer w draws depends on (seed, w) alone.
"""

import functools
import logging
import math
import string
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor
from torch.nn.functional import grid_sample

from fedsim.data.cache import cache_root, create_array, packed
from fedsim.data.federated import FederatedDataset, Normalise, Split
from fedsim.rng import stream

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
NUM_WRITERS, SIDE = 3550, 28
VERSION = 1  # counts up whenever any pixel changes, so that an old cache is not taken for a new one

# Only fonts that matplotlib has carried since before 3.9 and that draw all 62 characters as themselves, and the
# share of writers who start from each. Upright sans-serif letters are the nearest to hand printing.
FONTS = ("DejaVuSans", "cmss10", "DejaVuSansMono", "STIXGeneralItalic", "DejaVuSerif-Italic", "cmtt10", "cmr10")
FONTS += ("DejaVuSerif", "STIXGeneral")
_FONT_SHARES = (0.2, 0.2, 0.12, 0.12, 0.08, 0.08, 0.08, 0.06, 0.06)

_NOTE = (
    "femnist is a generated stand-in for LEAF's FEMNIST, drawn from printed fonts, not real handwriting, so its "
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

_RASTER = 128  # side of the bitmap on which a letter is thinned to its centre line
_CAPITAL = 80  # height of a capital H on it
_TABLE = 64  # side of the distance field kept of each letter


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
        preprocess=Normalise(mean=(0.899,), std=(0.231,)),  # measured over 500 writers; paper is 1
        source="glyphs",
        notes=(_NOTE,),
    )


def _draw_all(folder: Path, *, num_writers: int, seed: int, test_fraction: float) -> dict[str, int]:
    """Draw all writers into memory-mapped arrays in `folder`; see `packed`."""
    logging.getLogger(__name__).info("drawing %d writers' characters, once, into %s", num_writers, folder.parent)
    counts = np.array([_count(seed, writer) for writer in range(num_writers)])
    held_out = np.clip(np.rint(counts * test_fraction).astype(np.int64), 1, counts - 1)
    inputs, targets, offsets, num_threads = {}, {}, {}, torch.get_num_threads()
    for part, sizes in {"test": held_out, "train": counts - held_out}.items():
        offsets[part] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
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

    # One writer a task and one thread a task: vectorised and scalar code round differently, so that the last
    # bit of a pixel would otherwise depend on how many writers or threads share a call.
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pool.submit(_distance_fields).result()  # before the others, or each would make its own
            list(pool.map(draw, range(num_writers)))
    finally:
        torch.set_num_threads(num_threads)
    return {"num_writers": num_writers, "num_samples": int(counts.sum())}


def _count(seed: int, writer: int) -> int:
    shape = (_MEAN_COUNT / _STD_COUNT) ** 2
    return max(_MIN_COUNT, round(stream(seed, "glyphs.count", client=writer).gamma(shape, _MEAN_COUNT / shape)))


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one writer writes. Lengths are in half images (14 pixels) unless they are said to be in pixels.

    Attributes:
        mix: (62,) the writer's class probabilities.
        forms: (62,) int64: number of the font from which the writer has each character.
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


_SHAPE_MEAN = np.array([0.08, 0.0, -0.02, -0.05, math.log(1.0)])
_SHAPE_STD = np.array([0.16, 0.06, 0.12, 0.14, 0.22])  # between writers
_SHAPE_JITTER = np.array([0.1, 0.08, 0.08, 0.1, 0.1])  # between one writer's samples
_OFFSET_STD, _OFFSET_JITTER = 0.04, 0.07
_FREQUENCIES = np.array([(i, j) for i in range(4) for j in range(4) if i + j > 0])
_WARP_DECAY = np.hypot(*_FREQUENCIES.T) ** -1.6 * np.array([[1.0], [1.0], [2.0]])  # of each kind and term
_WARP_STD, _WARP_FORM, _WARP_JITTER = 0.04, 0.08, 0.05  # between writers, their characters, and samples


def style(seed: int, writer: int) -> tuple[Style, np.random.Generator]:
    """The style of `writer`, and the generator from which the writer's samples are drawn after it."""
    rng = stream(seed, "glyphs.writer", client=writer)
    own, *borrowed = rng.choice(len(FONTS), 1 + len(CHARACTERS), p=_FONT_SHARES)
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
        shakiness=math.exp(0.3 * rng.standard_normal()),
    ), rng


def _draw_writer(seed: int, writer: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28) uint8 and classes (count,) int64 of one writer."""
    own, rng = style(seed, writer)
    classes = rng.choice(len(CHARACTERS), count, p=own.mix)
    shape = own.shape + own.shakiness * _SHAPE_JITTER * rng.standard_normal((count, 5))
    offset = own.offset + own.shakiness * _OFFSET_JITTER * rng.standard_normal((count, 2))
    shaky = own.shakiness * _WARP_JITTER * _WARP_DECAY
    warp = own.warp[classes] + shaky * rng.standard_normal((count, *_WARP_DECAY.shape))
    noise = np.frombuffer(bytearray(rng.bytes(count * SIDE * SIDE)), np.uint8).reshape(count, -1)

    # Where each pixel lies on the letter: the inverse of (stretch, slant, rotate, move), and the warp.
    slant, angle, height, width = shape[:, 0], shape[:, 1], np.exp(-shape[:, 2]), np.exp(-shape[:, 3])
    cos, sin = np.cos(angle), np.sin(angle)
    rows = np.stack([cos + slant * sin, -sin + slant * cos, sin, cos], axis=1).reshape(count, 2, 2)
    linear = rows * np.stack([width, height], axis=1)[:, :, None]
    coefficients = np.concatenate([np.zeros((count, 3, 3)), warp], axis=2)
    coefficients[:, :2, 0] = -np.einsum("nij,nj->ni", linear, offset)
    coefficients[:, :2, 1:3] = linear
    fields = (torch.from_numpy(coefficients.astype(np.float32)).view(count * 3, -1) @ _basis()).view(count, 3, -1)

    # How far each pixel is from the pen's path, in pixels, and so how much ink it has.
    tables = _distance_fields().index_select(0, torch.from_numpy(own.forms[classes] * len(CHARACTERS) + classes))
    points = fields[:, :2].transpose(1, 2).unsqueeze(1)
    distance = grid_sample(tables, points, padding_mode="border", align_corners=False).view(count, -1)
    pixels = torch.from_numpy((SIDE / 2 / np.sqrt(width * height) / own.softness).astype(np.float32))
    radius = torch.from_numpy((np.exp(shape[:, 4]) / own.softness).astype(np.float32))
    ink = (fields[:, 2] + 1).mul_(radius[:, None]).addcmul_(distance, pixels[:, None], value=-1).add_(0.5).clamp_(0, 1)
    image = 255 * (1 - own.contrast * ink) + own.noise * (torch.from_numpy(noise) - 127.5)
    return image.round_().clamp_(0, 255).to(torch.uint8).view(count, SIDE, SIDE).numpy(), classes


@functools.cache
def _basis() -> Tensor:
    """(3 + T, 784) float32 functions on the image: 1, x, y (from -1 to 1), then products of cosines."""
    line = (np.arange(SIDE) + 0.5) / SIDE
    y, x = np.meshgrid(line, line, indexing="ij")
    waves = [np.cos(np.pi * i * x) * np.cos(np.pi * j * y) for i, j in _FREQUENCIES]
    rows = np.stack([np.ones_like(x), 2 * x - 1, 2 * y - 1, *waves]).astype(np.float32)
    return torch.from_numpy(rows).flatten(1)


@functools.cache
def _distance_fields() -> Tensor:
    """(F * 62, 1, 64, 64) float32: how far each point of a letter's frame is from its centre line, in half frames."""
    return torch.cat([_distances(_thin(_bitmaps(font))) for font in FONTS]).unsqueeze(1)


def _bitmaps(font: str) -> np.ndarray:
    """(62, 128, 128) bool: the characters of a font, centred, at one scale but where one is too large for it."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    outlines = [TextPath((0, 0), c, size=100, prop=FontProperties(fname=str(file))) for c in CHARACTERS]
    points = [np.concatenate(outline.to_polygons()) for outline in outlines]
    unit = _CAPITAL / np.ptp(points[CHARACTERS.index("H")], axis=0)[1]
    renderer = RendererAgg(_RASTER, len(CHARACTERS) * _RASTER, 72)
    pen = renderer.new_gc()
    pen.set_linewidth(0)
    for place, (outline, corners) in enumerate(zip(outlines, points, strict=True)):
        low, high = corners.min(axis=0), corners.max(axis=0)
        move = Affine2D().translate(*-(low + high) / 2).scale(min(unit, 0.88 * _RASTER / (high - low).max()))
        move.translate(_RASTER / 2, (len(CHARACTERS) - place - 0.5) * _RASTER)
        renderer.draw_path(pen, outline, move, (0.0, 0.0, 0.0))
    return (np.asarray(renderer.buffer_rgba())[:, :, 3] > 127).reshape(len(CHARACTERS), _RASTER, _RASTER)


def _thin(bitmaps: np.ndarray) -> np.ndarray:
    """Thin (M, H, W) bool bitmaps with an empty border to lines one pixel wide (Zhang and Suen 1984)."""
    ring = np.arange(256)[:, None] >> np.arange(8) & 1  # neighbours clockwise from the north
    turns = ((ring == 0) & (np.roll(ring, -1, axis=1) == 1)).sum(axis=1)
    north, east, south, west = ring[:, 0], ring[:, 2], ring[:, 4], ring[:, 6]
    edge = (turns == 1) & (ring.sum(axis=1) >= 2) & (ring.sum(axis=1) <= 6)
    passes = (
        edge & (north * east * south == 0) & (east * south * west == 0),
        edge & (north * east * west == 0) & (north * south * west == 0),
    )
    flat, width = bitmaps.astype(np.uint8).reshape(-1), bitmaps.shape[2]
    around = (-width, 1 - width, 1, width + 1, width, width - 1, -1, -width - 1)
    ink, before = np.flatnonzero(flat), -1
    while len(ink) != before:
        before = len(ink)
        for deletable in passes:
            code = np.zeros(len(ink), dtype=np.uint8)
            for bit, step in enumerate(around):
                code |= flat[ink + step] << np.uint8(bit)
            gone = deletable[code]
            flat[ink[gone]] = 0
            # A square of four, such as the dot of an i, would vanish whole: keep its north-western pixel.
            square = ink[gone & (code == 0b00011100)]
            square = square[flat[square + 1] + flat[square + width] + flat[square + width + 1] == 0]
            flat[square] = 1
            ink = ink[flat[ink] > 0]
    return flat.reshape(bitmaps.shape).astype(bool)


def _distances(lines: np.ndarray) -> Tensor:
    """(M, 64, 64) float32, in half frames: distances to the nearest line pixel of (M, 128, 128) bool."""
    columns, step = np.arange(_RASTER, dtype=np.int32), _RASTER // _TABLE
    left = np.maximum.accumulate(np.where(lines, columns, -_RASTER), axis=2)
    right = np.minimum.accumulate(np.where(lines, columns, 2 * _RASTER)[:, :, ::-1], axis=2)[:, :, ::-1]
    points = step * np.arange(_TABLE, dtype=np.int32) + step // 2  # on the left edge of the pixel of that number
    across = np.minimum(points - 0.5 - left[:, :, points - 1], right[:, :, points] + 0.5 - points)
    across = torch.from_numpy(across.astype(np.float32)).square_()
    down = (torch.from_numpy(points)[:, None] - torch.arange(_RASTER) - 0.5).square()
    nearest = torch.full((len(lines), _TABLE, _TABLE), torch.inf)
    for row in range(_RASTER):
        torch.minimum(nearest, across[:, row, None, :] + down[:, row, None], out=nearest)
    return nearest.sqrt_() / (_RASTER / 2)
