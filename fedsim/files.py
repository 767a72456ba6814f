"""Files that are either whole or not there, and a directory that one run has for itself."""

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("fedsim")

CHECKPOINT = "checkpoint.safetensors"
_LOCK = ".lock"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and give it its name.

    Whoever reads `path`, even after a crash at any moment, finds the old file or the new one. On an error (a full
    disk) the temporary file is removed and the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, "Tensor"], about: dict[str, str] | None = None) -> None:
    """`write_atomically` for tensors and a text or more about them, as safetensors.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, about))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def in_use(directory: Path) -> Iterator[None]:
    """Keep other runs out of `directory` as long as this process, and none that it starts, is in here.

    What killed runs have left half-written is removed. Where the system or the file system has no locks, nobody is kept
    out and nothing is removed.

    Raises:
        ValueError: another run is in there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("ab") as file:  # closed in processes that are started meanwhile; never removed, for
        try:  # else two runs could lock two files of this name
            fcntl = importlib.import_module("fcntl")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{directory} is in use by another run; give another directory (hydra.run.dir), or wait for its end"
            ) from None
        except (ImportError, OSError) as error:
            log.debug(f"{directory} cannot be locked ({error})")
        else:
            for left in directory.glob(".*.tmp"):
                left.unlink(missing_ok=True)
        yield


def holds_run(directory: Path) -> bool:
    """Whether a run has left results in `directory`: a checkpoint, a round, or its summary."""
    metrics = directory / "metrics.jsonl"
    return (
        (directory / CHECKPOINT).exists()
        or (directory / "summary.json").exists()
        or (metrics.exists() and metrics.stat().st_size > 0)
    )
