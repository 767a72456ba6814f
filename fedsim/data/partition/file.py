"""The manifest: a partition in one .npz file, with its recipe, its seed, the hash of its data, and its own hash.

The file holds arrays (`offsets`, `order`, and those of `held_out`, `members` and `member_offsets` that there are), in
the narrowest integers that fit, and `metadata`, a JSON text: format, recipe, seed, facts, skews, num_samples, dataset,
digest. There is no pickle in it, and any tool that reads NumPy's files can read it.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedsim.files import write_atomically

if TYPE_CHECKING:
    from fedsim.data.partition.record import Partition

    P = TypeVar("P", bound=Partition)

FORMAT = 1
_ARRAYS = ("offsets", "order", "held_out", "members", "member_offsets")


def metadata(partition: "Partition") -> dict[str, Any]:
    """What the file says beside its arrays."""
    return {
        "format": FORMAT,
        "recipe": partition.recipe,
        "seed": partition.seed,
        "dataset": partition.dataset,
        "num_clients": partition.num_clients,
        "num_samples": partition.num_samples,
        "facts": partition.facts,
        "skews": list(partition.skews),
        "digest": partition.digest(),
    }


def save(partition: "Partition", path: str | os.PathLike[str]) -> None:
    """Write the file: completely, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.array(json.dumps(metadata(partition)))
    arrays: dict[str, Any] = {name: getattr(partition, name) for name in _ARRAYS}
    narrow = {
        name: array.astype(np.min_scalar_type(int(array.max(initial=0))))
        for name, array in arrays.items()
        if array is not None
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, savez would append .npz to it
            np.savez(file, metadata=text, **narrow)

    write_atomically(path, write)


def load(kind: "type[P]", path: str | os.PathLike[str]) -> "P":
    """Read the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, something else, or of a later format.
    """
    try:
        # np.load leaves a file open that it opened and could not read.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            rest = json.loads(str(file["metadata"]))
            if rest["format"] != FORMAT:
                raise ValueError(f"it has format {rest['format']}, and this fedsim reads {FORMAT}")
            found = kind(
                **{name: file[name].astype(np.int64) for name in _ARRAYS if name in file},
                num_samples=rest["num_samples"],
                recipe=rest["recipe"],
                seed=rest["seed"],
                facts=rest["facts"],
                dataset=None if rest["dataset"] is None else (rest["dataset"][0], rest["dataset"][1]),
                skews=tuple(rest["skews"]),
            )
            if found.digest() != rest["digest"]:
                raise ValueError("its content does not have the hash that it states")
            return found
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a partition that fedsim saved: {error}") from error
