"""The data report: what every client has, how different the clients are, and pictures of it.

In Python `report(dataset, folder)`; on the command line `python -m fedsim.data_report +experiment=...`.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.heterogeneity import effective_classes, gini, hellinger, jensen_shannon
from fedsim.data.partition.file import metadata
from fedsim.data.partition.record import Partition
from fedsim.files import write_atomically, write_text

_LOG = logging.getLogger(__name__)
_SPLITS = ("train", "validation", "test")


def class_counts(dataset: FederatedDataset) -> np.ndarray | None:
    """(C, K) int64: samples of each class that each client owns, in all splits; None where targets are no classes."""
    counts = np.zeros(dataset.num_clients * dataset.num_classes, dtype=np.int64)
    for _, split in _owned(dataset):
        targets = split.targets.numpy()
        if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
            return None
        rows = slice(split.num_samples) if split.order is None else split.order[: split.num_samples]
        labels = targets[rows]
        if len(labels) and not 0 <= labels.min() <= labels.max() < dataset.num_classes:
            return None
        cells = np.repeat(np.arange(dataset.num_clients) * dataset.num_classes, split.sizes) + labels
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(dataset.num_clients, dataset.num_classes)


def client_frame(dataset: FederatedDataset, counts: np.ndarray | None = None) -> pd.DataFrame:
    """One row a client.

    Columns: `client` (its name), `samples`, `train`, `validation` and `test` (where clients own any), and where targets
    are classes `effective_classes`, `hellinger`, `jensen_shannon` (`fedsim.data.heterogeneity`) and `class_0` ... .

    Args:
        dataset: with owners.
        counts: `class_counts(dataset)`, if it is at hand.
    """
    sizes = {name: split.sizes for name, split in _owned(dataset)}
    columns: dict[str, Any] = {"client": list(dataset.client_ids), "samples": sum(sizes.values()), **sizes}
    counts = class_counts(dataset) if counts is None else counts
    if counts is not None:
        columns["effective_classes"] = effective_classes(counts)
        columns["hellinger"] = hellinger(counts)
        columns["jensen_shannon"] = jensen_shannon(counts)
    frame = pd.DataFrame(columns)
    if counts is None:
        return frame
    narrow = counts.astype(np.int32) if counts.max(initial=0) < 2**31 else counts
    return pd.concat([frame, pd.DataFrame(narrow, index=frame.index).add_prefix("class_")], axis=1)


def summarise(dataset: FederatedDataset, frame: pd.DataFrame) -> dict[str, Any]:
    """The numbers of the report: plain values, by name. Means are over clients, each of which counts once."""
    sizes = frame["samples"].to_numpy()
    summary: dict[str, Any] = {
        "data": dataset.name,
        "data_source": dataset.source,
        "num_clients": len(frame),
        "num_samples": {name: int(frame[name].to_numpy().sum()) for name in _SPLITS if name in frame},
        "num_central_test_samples": 0 if dataset.test is None or dataset.test.owned else dataset.test.num_samples,
        "sizes": {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "mean": float(sizes.mean()),
            "max": int(sizes.max()),
            "gini": gini(sizes),
        },
        "notes": list(dataset.notes),
    }
    if "hellinger" in frame:
        held = frame["effective_classes"].to_numpy()
        p10, p90 = np.nanpercentile(held, [10, 90])
        summary["num_classes"] = dataset.num_classes
        summary["effective_classes"] = {"mean": float(np.nanmean(held)), "p10": float(p10), "p90": float(p90)}
        for name in ("hellinger", "jensen_shannon"):
            summary[name] = float(np.nanmean(frame[name].to_numpy()))
    return summary


def facts(summary: dict[str, Any]) -> dict[str, str]:
    """The summary as a person reads it, under the name of each thing."""
    sizes = summary["sizes"]
    parts = ", ".join(f"{name} {count:,}" for name, count in summary["num_samples"].items())
    central = summary["num_central_test_samples"]
    found = {
        "data": f"{summary['data']} ({summary['data_source']})",
        "clients": f"{summary['num_clients']:,}",
        "samples of clients": f"{sum(summary['num_samples'].values()):,} ({parts})",
    }
    if central:
        found["central test samples"] = f"{central:,}"
    found["samples a client"] = (
        f"{sizes['min']:,} to {sizes['max']:,}, median {sizes['median']:,.0f}, mean {sizes['mean']:,.1f}; "
        f"Gini {sizes['gini']:.3f}"
    )
    if "effective_classes" in summary:
        held = summary["effective_classes"]
        spread = f"10th to 90th percentile {held['p10']:.2f} to {held['p90']:.2f}"
        found["effective classes"] = f"{held['mean']:.2f} of {summary['num_classes']} a client ({spread})"
        near = f"Hellinger {summary['hellinger']:.3f}, Jensen-Shannon {summary['jensen_shannon']:.3f}"
        found["distance to all"] = f"{near} (mean of clients)"
    if "partition" in summary:
        made = summary["partition"]
        options = ", ".join(f"{key}={value}" for key, value in made["recipe"].items() if key != "name")
        found["partition"] = f"{made['recipe']['name']} ({options}), seed {made['seed']}"
        found["hash of the data"] = made["dataset"][1]
        found["hash of the partition"] = made["digest"]
    if summary["notes"]:
        found["notes"] = "\n".join(summary["notes"])
    return found


def report(
    dataset: FederatedDataset, folder: str | Path, *, partition: Partition | None = None, title: str = ""
) -> dict[str, Any]:
    """Write the report into `folder`.

    clients.csv and clients.parquet (`client_frame`), data_report.json (`summarise`), partition.npz (the manifest, if
    there is a partition), and as PNG and PDF class_bars, class_map (where targets are classes) and sizes. Without
    pyarrow there is no Parquet file, which is logged.

    Args:
        dataset: with owners.
        folder: made where it is missing; files in it are replaced.
        partition: that gave the dataset its owners.
        title: of the pictures.

    Returns:
        The content of data_report.json.

    Raises:
        ValueError: the dataset has no clients.
    """
    from fedsim.data import plots  # brings matplotlib, which the tables do not need

    if dataset.num_clients == 0:
        raise ValueError(f"data={dataset.name} has no clients yet; apply a partition first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = class_counts(dataset)
    frame = client_frame(dataset, counts)
    summary = summarise(dataset, frame)
    if partition is not None:
        summary["partition"] = metadata(partition)
        partition.save(folder / "partition.npz")
    write_atomically(folder / "clients.csv", lambda path: frame.to_csv(path, index=False))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        _LOG.warning(
            "clients.parquet is not written, for that needs pyarrow: pip install '.[parquet]' in fedsim's folder"
        )
    else:
        write_atomically(folder / "clients.parquet", lambda path: frame.to_parquet(path, index=False))
    sizes = frame["samples"].to_numpy()
    pictures = {"sizes": plots.size_histogram(sizes, title)}
    if counts is not None:
        names = list(dataset.client_ids) if len(counts) <= plots.MAX_BARS else None
        pictures["class_bars"] = plots.class_bars(counts, names, title)
        pictures["class_map"] = plots.class_map(counts, names, title)
    for name, picture in pictures.items():
        for kind in ("png", "pdf"):
            write_atomically(folder / f"{name}.{kind}", lambda path, p=picture, k=kind: p.savefig(path, format=k))
    write_text(folder / "data_report.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _owned(dataset: FederatedDataset) -> list[tuple[str, Split]]:
    splits = [(name, getattr(dataset, name)) for name in _SPLITS]
    return [(name, split) for name, split in splits if split is not None and split.owned]
