"""Packed caches: a folder of .npy arrays and a meta.json, either complete or absent.

A cache is built in a temporary sibling folder, flushed to the disk and renamed, and a rename is atomic. A
builder that is killed leaves a `.NAME.*.tmp` folder, which nobody reads, and which a later build removes once
it is a day old. Of two processes that build at once both finish, and the later one takes the earlier's cache.
"""

import hashlib
import json
import mmap
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_META = "meta.json"
_STALE_SECONDS = 24 * 3600
_NORESERVE = 0x4000 if sys.platform == "linux" else getattr(mmap, "MAP_NORESERVE", 0)  # Python names it from 3.13 on
_FIX = "make room, or set data.cache_dir or the environment variable FEDSIM_CACHE to a folder you can write to"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Where caches go: `cache_dir`, else $FEDSIM_CACHE, else $XDG_CACHE_HOME/fedsim, else ~/.cache/fedsim."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("FEDSIM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "fedsim"
    return Path.home() / ".cache" / "fedsim"


def key_of(content: Any) -> str:
    """The name of a cache's folder: 20 hexadecimal digits of all that it depends on, as JSON can hold it."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def create_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """A new .npy file as a writable memory map of zeros, for a `build` whose arrays do not fit in memory.

    Raises:
        OSError: the disk cannot hold it.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    # The file is sparse, and a write to its map on a full disk kills the process (SIGBUS): claim space now.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    elif shutil.disk_usage(path.parent).free < array.nbytes:
        raise OSError(f"no space for {array.nbytes} bytes")
    return array


def map_array(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped copy-on-write. It may be larger than the memory.

    Linux promises memory for every page of such a map, as if all of them were to be written, and refuses maps beyond
    what it has. MAP_NORESERVE says that they are not; `np.load(mmap_mode="c")` does not.
    """
    if os.name == "nt":
        return np.load(path, mmap_mode="c")
    header: np.memmap = np.load(path, mmap_mode="r")
    with path.open("rb") as file:
        flags, rights = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        pages = mmap.mmap(file.fileno(), 0, flags=flags, prot=rights)
    order = "C" if header.flags.c_contiguous else "F"
    return np.ndarray(header.shape, header.dtype, pages, offset=header.offset, order=order)


def packed(folder: Path, build: Callable[[Path], dict[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The cache in `folder`, built first where there is none.

    Args:
        folder: the cache's own folder; its name holds all that the content depends on (version, seed, sizes).
        build: writes arrays as `NAME.npy` straight into the (temporary, empty) folder that it is given, with
            `np.save` or `create_array`, and returns what else is worth keeping, as JSON can hold it.

    Returns:
        The arrays by name, memory-mapped copy-on-write (`torch.from_numpy` takes them without a warning, and
        writing to them never reaches the file), and what `build` returned.

    Raises:
        ValueError: the folder cannot be written, the disk is full, or the cache in it is damaged.
    """
    if not folder.exists():
        temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
        try:
            _remove_stale(folder)
            temporary.mkdir(parents=True)
            _build(temporary, folder, build)
        except OSError as error:
            # `build` reads files of its own too; an error that names one of those is not about the cache.
            about = temporary if error.filename is None else Path(error.filename)
            if not about.is_relative_to(temporary) and not temporary.is_relative_to(about):
                raise
            raise ValueError(f"cannot write the cache {folder}: {error.strerror or error}; {_FIX}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _load(folder)


def _build(temporary: Path, folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    meta = build(temporary)
    files = sorted(temporary.glob("*.npy"))
    arrays = {}
    for file in files:
        array = np.load(file, mmap_mode="r")
        arrays[file.stem] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    (temporary / _META).write_text(json.dumps({"arrays": arrays, "meta": meta}, indent=1))
    for path in [*files, temporary / _META, temporary]:
        _sync(path)
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / _META).exists():  # else another process was first, and its cache is as good
            raise
    else:
        _sync(folder.parent)


def _load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        content = json.loads((folder / _META).read_text())
        arrays: dict[str, np.ndarray] = {}
        for name, expected in content["arrays"].items():
            array = map_array(folder / f"{name}.npy")
            if [list(array.shape), str(array.dtype)] != [expected["shape"], expected["dtype"]]:
                raise ValueError(f"{name}.npy is not the array that was stored")
            arrays[name] = array
        return arrays, content["meta"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the cache {folder} is damaged ({error}): delete it, to have it built again") from error


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(folder: Path) -> None:
    """Delete what killed builders of this cache left, when it is too old to belong to one still at work."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        with suppress(OSError):  # another process may be doing the same
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path)
