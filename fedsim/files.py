"""Files that are either whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path

CHECKPOINT = "checkpoint.safetensors"


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


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def holds_run(directory: Path) -> bool:
    """Whether a run has left results in `directory`: a checkpoint, a round, or its summary."""
    metrics = directory / "metrics.jsonl"
    return (
        (directory / CHECKPOINT).exists()
        or (directory / "summary.json").exists()
        or (metrics.exists() and metrics.stat().st_size > 0)
    )
