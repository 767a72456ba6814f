"""FEMNIST: characters by writer, from LEAF's files or from the generated stand-in (`glyphs`).

LEAF (Caldas et al. 2018) makes it of NIST's handwriting: 3,550 writers, 62 classes, 28x28 pixels in [0, 1]
with white paper at 1. Its inputs are not normalised further, as in LEAF's own models.
"""

from dataclasses import replace

from fedsim.data.federated import FederatedDataset
from fedsim.data.leaf import leaf_folder, read_leaf

_SOURCES = ("auto", "leaf", "glyphs")
_TEST_FRACTION = 0.1


def femnist(
    *,
    root: str | None = None,
    source: str = "auto",
    num_clients: int | None = None,
    seed: int = 0,
    test_fraction: float = _TEST_FRACTION,
    cache_dir: str | None = None,
) -> FederatedDataset:
    """FEMNIST, one client a writer: inputs (N, 1, 28, 28) uint8, targets (N,) int64 in [0, 62).

    Args:
        root: folder of LEAF's files: train/ and test/ in it, or in its data/, femnist/ or femnist/data/.
        source: "leaf"; "glyphs", the stand-in; or "auto": "leaf" where `root` is given, else "glyphs".
            A `root` without LEAF's files is an error and never means the stand-in.
        num_clients: writers to keep: of LEAF's a seeded draw without replacement, of the stand-in's the
            first. None is all, 3,550 in the full sets.
        seed: of that draw, and of the stand-in's drawing.
        test_fraction: of each writer's samples in the stand-in; LEAF's files are split already.
        cache_dir: folder of the packed arrays; None is `.fedsim/` in LEAF's folder, or the cache root.

    Raises:
        FileNotFoundError: LEAF's files are not in `root`.
        ValueError: an argument is out of range, or LEAF's files are damaged.
    """
    if source not in _SOURCES:
        raise ValueError(f"data.source={source!r} is unknown: set it to one of {', '.join(_SOURCES)}")
    if source == "leaf" and root is None:
        raise ValueError("data.source=leaf needs data.root=<folder with LEAF's femnist train/ and test/>")
    if source == "glyphs" or root is None:
        return _stand_in(root, num_clients, seed, test_fraction, cache_dir)
    dataset = read_leaf(
        leaf_folder(root, "femnist", ", or leave data.root out for the generated stand-in"),
        name="femnist",
        num_classes=62,
        input_shape=(1, 28, 28),
        num_clients=num_clients,
        seed=seed,
        cache_dir=cache_dir,
    )
    if test_fraction == _TEST_FRACTION:
        return dataset
    ignored = f"data.test_fraction={test_fraction} is ignored: LEAF's files are split already"
    return replace(dataset, notes=(*dataset.notes, ignored))


def _stand_in(
    root: str | None, num_clients: int | None, seed: int, test_fraction: float, cache_dir: str | None
) -> FederatedDataset:
    from fedsim.data.glyphs import NUM_WRITERS, glyphs  # brings matplotlib, which LEAF's files do not need

    dataset = glyphs(
        num_clients=NUM_WRITERS if num_clients is None else num_clients,
        seed=seed,
        test_fraction=test_fraction,
        cache_dir=cache_dir,
    )
    if root is None:
        return dataset
    return replace(dataset, notes=(*dataset.notes, f"data.root={root} is ignored: data.source=glyphs reads no files"))
