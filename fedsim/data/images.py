"""Image files, decoded by several threads into one array of bytes."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedsim.data.cache import create_array

Source = Path | bytes
_AT_ONCE = 512  # images whose files are in memory together
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """What every image becomes.

    Attributes:
        channels: 1 (grey) or 3 (red, green, blue).
        height, width: in pixels.
        resize: whether images of another size are scaled to it; else they are refused.
    """

    channels: int
    height: int
    width: int
    resize: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def form_of(first: Source, *, size: int | None, channels: int | None) -> Form:
    """The form of a set of images.

    Args:
        first: an image, which decides what the others leave open.
        size: pixels a side, to which all are scaled; None: all must have the size of the first.
        channels: 1 or 3; None: those of the first.

    Raises:
        ValueError: an argument is out of range, or the first image cannot be read.
    """
    if size is not None and size < 1:
        raise ValueError(f"data.image_size is {size}: choose the pixels a side, or null to keep the images' own size")
    if channels not in (None, *_MODES):
        raise ValueError(f"data.channels is {channels}: choose 1 (grey), 3 (colour), or null for that of the images")
    try:
        with _open(first) as image:
            width, height = image.size
            found = 1 if image.mode in ("1", "L", "I;16", "I", "F") else 3
    except Exception as error:
        raise _damaged(first, error) from error
    if size is not None:
        height = width = size
    return Form(channels=channels or found, height=height, width=width, resize=size is not None)


def decode(source: Source, form: Form) -> np.ndarray:
    """One image as (channels, height, width) uint8.

    Raises:
        ValueError: it cannot be read or has another size; the message names the file.
    """
    try:
        with _open(source) as image:
            if image.size != (form.width, form.height) and not form.resize:
                own = f"{image.size[0]} x {image.size[1]}"
                raise ValueError(
                    f"{_name(source)} has {own} pixels, the first image {form.width} x {form.height}: set "
                    "data.image_size, to which all are scaled"
                )
            grey_or_colour = image.convert(_MODES[form.channels])
            if image.size != (form.width, form.height):
                grey_or_colour = grey_or_colour.resize((form.width, form.height), Image.Resampling.BILINEAR)
            pixels = np.asarray(grey_or_colour)
    except ValueError as error:
        if "set data.image_size" in str(error):
            raise
        raise _damaged(source, error) from error
    except Exception as error:  # whatever a decoder stumbles over
        raise _damaged(source, error) from error
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def decode_all(sources: Iterable[Source], form: Form, out: np.ndarray) -> None:
    """Decode images, in their order, into `out` (N, channels, height, width) uint8, which may be memory-mapped.

    Raises:
        ValueError: one of them cannot be read or has another size.
    """
    rest, start = iter(sources), 0

    def put(place: int, source: Source) -> None:
        out[place] = decode(source, form)

    # Decoders release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(islice(rest, _AT_ONCE)):
            list(pool.map(put, range(start, start + len(some)), some))
            start += len(some)
    assert start == len(out)


def pack_images(folder: Path, *, files: Mapping[str, Sequence[Path]], form: Form) -> dict[str, Any]:
    """Decode the files of each part into `PART.npy` in `folder`, for `fedsim.data.cache.packed`.

    Raises:
        ValueError: as `decode_all`.
    """
    for part, sources in files.items():
        decode_all(sources, form, create_array(folder / f"{part}.npy", np.uint8, (len(sources), *form.shape)))
    return {}


def _open(source: Source) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _name(source: Source) -> str:
    return "an image" if isinstance(source, bytes) else str(source)


def _damaged(source: Source, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{_name(source)} cannot be read as an image ({reason}): repair or remove it")
