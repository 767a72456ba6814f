"""Forms of the 62 characters: centre lines of printed letters and of two hand-printed alphabets, as distance tables.

The fonts are those that matplotlib carries, thinned to lines; the hands are drawn here, stroke by stroke. A form's
table says of each point of its frame how far it is from the line. All arithmetic behind it is of integers, or of
floating-point operations that every machine rounds alike, so that the tables are the same everywhere.
"""

import functools
import string
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor

from fedsim.data.threads import single_threads

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Only fonts that matplotlib has carried since before 3.9 and that draw all 62 characters as themselves.
FONTS = ("DejaVuSans", "cmss10", "DejaVuSansMono", "STIXGeneralItalic", "DejaVuSerif-Italic", "cmtt10", "cmr10")
FONTS += ("DejaVuSerif", "STIXGeneral")
TABLE = 128  # side of a table
UNITS = 16  # of a table's distances in an image's pixel

_RASTER = 128  # side of the bitmap on which a letter is thinned to its centre line
_COARSE = 64  # side of the table before it is interpolated
_CAPITAL = 80  # height of a capital H on the bitmap

# Strokes of a character, each a sequence of points: x from the left, y from the top in base 36, where a capital reaches
# from 0 to c, a small letter from 5, and a tail to g. A stroke that begins with - is straight from point to point, any
# other is a smooth curve through its points.
_PRINTED = {
    "0": "30 11 06 1b 3c 5b 66 51 30",
    "1": "-40 4c",
    "2": "02 20 50 72 65 39 0c, -0c 8c",
    "3": "01 30 61 63 35, 35 67 7a 4c 0b",
    "4": "-20 07 87, -60 6c",
    "5": "-70 10 15, 15 44 77 6b 3c 0b",
    "6": "60 23 07 0a 2c 5c 7a 78 56 26 08",
    "7": "-00 80 3c",
    "8": "45 13 20 60 73 45 09 2c 6c 89 45",
    "9": "72 50 20 03 16 46 72, -71 6c",
    "A": "-0c 40 8c, -28 68",
    "B": "-00 0c, 00 50 73 45 05, 05 56 89 5c 0c",
    "C": "82 50 12 06 1a 5c 8a",
    "D": "-00 0c, 00 51 86 5b 0c",
    "E": "-80 00 0c 8c, -05 65",
    "F": "-80 00 0c, -05 65",
    "G": "82 50 12 06 1a 5c 8a, -56 87 8c",
    "H": "-00 0c, -80 8c, -06 86",
    "I": "-40 4c, -10 70, -1c 7c",
    "J": "60 66 6a 4c 1c 09",
    "K": "-00 0c, -80 06 8c",
    "L": "-00 0c 7c",
    "M": "-0c 00 47 80 8c",
    "N": "-0c 00 8c 80",
    "O": "50 12 06 1a 5c 9a a6 92 50",
    "P": "-00 0c, 00 50 83 56 06",
    "Q": "50 12 06 1a 5c 9a a6 92 50, -68 ad",
    "R": "-00 0c, 00 50 83 56 06, -36 8c",
    "S": "71 40 12 35 67 7a 4c 0b",
    "T": "-00 80, -40 4c",
    "U": "00 07 1b 4c 7b 87 80",
    "V": "-00 4c 80",
    "W": "-00 2c 53 8c a0",
    "X": "-00 8c, -80 0c",
    "Y": "-00 46 80, -46 4c",
    "Z": "-00 80 0c 8c",
    "a": "75 35 08 2c 5b 76, -75 7c",
    "b": "-00 0c, 07 35 68 5b 3c 0a",
    "c": "66 45 17 0a 3c 6b",
    "d": "-70 7c, 77 45 07 1b 4c 7a",
    "e": "-08 78, 78 55 25 08 1b 4c 7b",
    "f": "71 50 33 38 3c, -05 65",
    "g": "75 35 08 2b 5a 76, 75 7c 6f 3g 0f",
    "h": "-00 0c, 07 35 67 7c",
    "i": "-35 3c, -31 32",
    "j": "45 4c 3f 0f, -41 42",
    "k": "-00 0c, -65 08 7c",
    "l": "30 36 39 4c 6b",
    "m": "-05 0c, 06 25 46 4c, 46 65 86 8c",
    "n": "-05 0c, 07 35 67 6c",
    "o": "35 06 0a 3c 6a 66 35",
    "p": "-05 0g, 07 35 68 5b 3c 0a",
    "q": "-75 7g 9e, 77 45 07 1b 4c 7a",
    "r": "-05 0c, 08 15 45 66",
    "s": "66 35 17 48 6a 4c 0b",
    "t": "30 37 3a 4c 6b, -04 64",
    "u": "05 0a 2c 5b 68, -65 6c",
    "v": "-05 3c 65",
    "w": "-05 2c 46 6c 85",
    "x": "-05 6c, -65 0c",
    "y": "-05 3c, -75 1g",
    "z": "-05 65 0c 6c",
}
# A second hand, which writes more in one stroke; where it is silent it writes as the first.
_JOINED = _PRINTED | {
    "0": "50 22 07 2c 6b 76 50 30",
    "1": "-13 40 4c",
    "2": "02 20 60 64 2b 0b 19 4b 8c",
    "3": "-00 70 35, 35 67 7a 4c 0b",
    "4": "-6c 60 08 88",
    "5": "70 20 15 45 78 5c 0b",
    "6": "50 15 0a 3c 69 47 0a",
    "7": "-00 80 3c, -26 76",
    "8": "40 12 45 72 40, 45 09 4c 89 45",
    "9": "72 40 03 26 63 72 6a 3c 0b",
    "A": "0c 14 40 74 8c, -07 87",
    "B": "-10 1c, 00 40 72 45 15, 15 67 7a 4c 0c",
    "E": "71 40 12 35 55, 35 08 1b 4c 8b",
    "F": "-10 1c, -00 80, -15 65",
    "G": "71 40 06 3c 7b 77, -47 97",
    "I": "-40 4c",
    "J": "-10 80, 50 56 5a 3c 0a",
    "K": "-00 0c, 80 16 8c",
    "M": "-0c 20 4a 70 9c",
    "N": "-0c 10 7c 80",
    "Q": "40 06 4c 86 40, -59 9c",
    "R": "-10 1c, 00 60 73 16, -16 8c",
    "S": "80 30 13 56 79 3c 0b",
    "U": "00 08 3c 6c 89, -80 8c",
    "W": "00 2c 54 8c a0",
    "Y": "-00 36, -80 1c",
    "Z": "-00 80 0c 8c, -26 66",
    "a": "66 25 0a 3c 66, 66 6a 8c",
    "b": "10 0a 3c 69 46 09",
    "d": "66 25 0a 3c 68, 70 69 8c",
    "e": "08 48 65 25 09 3c 7b",
    "f": "70 40 35 3c 1g, -05 65",
    "g": "66 35 08 3b 66, 66 6d 3g 0e 4b 8a",
    "h": "-10 0c, 0a 36 57 6b 8c",
    "k": "-00 0c, 08 55 46 18, -18 7c",
    "l": "09 46 51 30 27 3c 6b",
    "m": "05 0c 16 26 3c 46 66 8c",
    "n": "05 0c 26 46 6c",
    "p": "-15 0g, 09 35 68 4c 0b",
    "q": "66 35 08 3b 66, 66 6g 8e",
    "t": "-30 3c, -04 64",
    "u": "05 0b 3c 65, 65 6b 8c",
    "v": "05 2c 4c 65",
    "w": "05 1c 38 5c 75",
    "x": "05 38 0c, 75 48 7c",
    "y": "05 1b 4b 65, 65 6d 3g 0e",
    "z": "-05 65 0c 6c, -28 58",
}
HANDS = (_PRINTED, _JOINED)
NUM_FORMS = len(HANDS) + len(FONTS)  # of each character


class Tables(NamedTuple):
    """All forms; that of number f of character c is row f * 62 + c. The hands come first.

    Attributes:
        distances: (F * 62 * 128 * 128,) uint8: from each point of a form's frame, row by row, to its line, in
            sixteenths of an image's pixel; 255 is farther.
        extents: (F * 62, 2) float64: half the line's width and height, in half frames.
    """

    distances: Tensor
    extents: np.ndarray


@functools.cache
def tables() -> Tables:
    """The tables of all forms: most of a second, once."""
    with single_threads() as pool:
        forms = [pool.submit(_form, _drawn(hand)) for hand in HANDS]
        forms += [pool.submit(lambda letters: _form(_thin(letters)), _bitmaps(font)) for font in FONTS]
        distances, extents = zip(*[form.result() for form in forms], strict=True)
    return Tables(torch.cat(distances).flatten(), np.concatenate(extents))


def _form(lines: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Distances and extents of (62, 128, 128) bool lines."""
    return _interpolated(_distances(lines)), _extents(lines)


def _drawn(hand: dict[str, str]) -> np.ndarray:
    """(62, 128, 128) bool: the lines of a hand's strokes, centred, at the fonts' scale."""
    lines = np.zeros((len(CHARACTERS), _RASTER, _RASTER), dtype=bool)
    for place, character in enumerate(CHARACTERS):
        points = np.concatenate([_path(stroke) for stroke in hand[character].split(", ")])
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        x, y = np.floor((points - centre) * (_CAPITAL / 12) + _RASTER / 2).astype(int).T
        lines[place, y, x] = True
    return lines


def _path(stroke: str) -> np.ndarray:
    """(n, 2) float64 points (x, y), close together, along a stroke."""
    smooth = not stroke.startswith("-")
    points = np.array(
        [[int(point[0], 36), int(point[1], 36)] for point in stroke.removeprefix("-").split()], dtype=float
    )
    before, after = points[:-1], points[1:]
    closed = bool(smooth and np.all(points[0] == points[-1]))
    # Catmull and Rom 1974: at each point the direction of its neighbours' connection.
    ends = (points[-2:-1], points[1:2]) if closed else (points[:1], points[-1:])
    around = np.concatenate([ends[0], points, ends[1]])
    slopes = (around[2:] - around[:-2]) / 2
    t = (np.arange(96) / 96)[:, None, None]
    if smooth:
        path = before * ((1 + 2 * t) * (1 - t) * (1 - t)) + after * (t * t * (3 - 2 * t))
        path += slopes[:-1] * (t * (1 - t) * (1 - t)) - slopes[1:] * (t * t * (1 - t))
    else:
        path = before * (1 - t) + after * t
    return np.concatenate([path.transpose(1, 0, 2).reshape(-1, 2), points[-1:]])


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
    """(M, 64, 64) int16, in `UNITS` of a pixel: distances to the nearest line pixel of (M, 128, 128) bool."""
    step = _RASTER // _COARSE
    points = step * np.arange(_COARSE, dtype=np.int16) + step // 2  # on the left edge of the pixel of that number
    # The letters lie last, so that a row of pixels is one long row of numbers.
    letters, columns = np.ascontiguousarray(lines.T), np.arange(_RASTER, dtype=np.int16)[:, None, None]
    left = np.maximum.accumulate(np.where(letters, columns, -_RASTER))[points - 1]
    right = np.minimum.accumulate(np.where(letters, columns, 2 * _RASTER)[::-1])[::-1][points]
    # Twice the distances, which are whole numbers; from 127 on they are all equally far, and two squares fit in int16.
    across = np.minimum(2 * (columns[points] - left) - 1, 2 * (right - columns[points]) + 1).clip(max=127)
    across = torch.from_numpy(np.ascontiguousarray(across.swapaxes(0, 1), dtype=np.int16)).view(_RASTER, -1)
    across.mul_(across)
    down = (2 * (torch.from_numpy(points)[:, None] - torch.arange(_RASTER)) - 1).abs().clamp_(max=127).square_()
    down = down.to(torch.int16)
    nearest = torch.full((_COARSE, across.shape[1]), torch.iinfo(torch.int16).max, dtype=torch.int16)
    sums = torch.empty_like(nearest)
    for row in range(_RASTER):
        torch.add(across[row], down[:, row, None], out=sums)
        torch.minimum(nearest, sums, out=nearest)
    nearest = nearest.view(_COARSE, _COARSE, -1).permute(2, 0, 1).contiguous()
    return nearest.float().sqrt_().mul_(UNITS * 28 / _RASTER / 2).round_().to(torch.int16)


def _interpolated(distances: Tensor) -> Tensor:
    """(M, 64, 64) int16 to (M, 128, 128) uint8, linearly."""
    fine = distances
    for axis in (1, 2):  # each doubles the side and multiplies by four
        last = fine.shape[axis] - 1
        left = torch.cat([fine.narrow(axis, 0, 1), fine.narrow(axis, 0, last)], dim=axis)
        right = torch.cat([fine.narrow(axis, 1, last), fine.narrow(axis, last, 1)], dim=axis)
        fine = torch.stack([3 * fine + left, 3 * fine + right], dim=axis + 1).flatten(axis, axis + 1)
    return ((fine + 8) >> 4).clamp_(0, 255).to(torch.uint8)


def _extents(lines: np.ndarray) -> np.ndarray:
    """(M, 2) float64, in half frames: half the width and half the height of (M, 128, 128) bool lines."""
    sides = []
    for axis in (1, 2):
        used = np.asarray(lines.any(axis=axis))
        sides.append(_RASTER - used[:, ::-1].argmax(axis=1) - used.argmax(axis=1))
    return np.stack(sides, axis=1) / _RASTER
