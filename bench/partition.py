"""What does each partition cost? Seconds and peak memory of dealing labels to clients, from a hundred to a million.

python bench/partition.py
python bench/partition.py --sizes 100x50000 --partitions dirichlet,shards

Every partition runs in a process of its own, the smaller sizes first. The samples have ten classes and three numbers
each (which only continuous, fcube and feature_noise look at; those of rotation are pictures of 4 x 4 bytes); the time
is that of the recipe, from the dataset to the dataset with its clients. `from_file` replays the manifest of an iid one,
`holdout` sets aside 10% of each client for validation and 10% for test on top of iid, `stratified` class by class.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import PeakMemory, header, print_report, release, write_report

from fedsim.data import partition as p
from fedsim.data.federated import FederatedDataset, Split

_MIB = 2**20
MANIFEST = Path(tempfile.gettempdir()) / f"fedsim_partition_{os.getpid()}.npz"
Recipe = Callable[[FederatedDataset, int], FederatedDataset]
# The least samples of a client: ten on average at the largest size, where the usual ten would mean equal sizes.
RECIPES: dict[str, Callable[[int, int], Recipe]] = {
    "iid": lambda n, least: p.Iid(num_clients=n),
    "quantity_lognormal": lambda n, least: p.Iid(num_clients=n, sizes=p.LogNormal()),
    "quantity_dirichlet": lambda n, least: p.Iid(num_clients=n, sizes=p.DirichletSizes()),
    "quantity_linear": lambda n, least: p.Iid(num_clients=n, sizes=p.Power(exponent=1.0)),
    "quantity_square": lambda n, least: p.Iid(num_clients=n, sizes=p.Power(exponent=2.0)),
    "quantity_exponential": lambda n, least: p.Iid(num_clients=n, sizes=p.Exponential()),
    "dirichlet": lambda n, least: p.Dirichlet(num_clients=n, alpha=0.1, min_samples=least),
    "dirichlet_balanced": lambda n, least: p.DirichletSized(num_clients=n, alpha=0.1),
    "dirichlet_sized": lambda n, least: p.DirichletSized(num_clients=n, alpha=0.1, sizes=p.LogNormal(sigma=0.5)),
    "shards": lambda n, least: p.Shards(num_clients=n),
    "label_skew": lambda n, least: p.LabelSkew(num_clients=n),
    "pathological": lambda n, least: p.Pathological(num_clients=n),
    "continuous": lambda n, least: p.Continuous(num_clients=n),
    "fcube": lambda n, least: p.Fcube(num_clients=n),
    "natural": lambda n, least: p.Natural(num_clients=n // 2),
    "grouped_natural": lambda n, least: p.GroupedNatural(num_clients=n // 2),
    "feature_noise": lambda n, least: p.FeatureNoise(base=p.Iid(num_clients=n)),
    "rotation": lambda n, least: p.Rotation(base=p.Iid(num_clients=n)),
    "from_file": lambda n, least: p.FromFile(path=str(MANIFEST)),
    "holdout": lambda n, least: p.Iid(num_clients=n, holdout=p.Holdout(validation_fraction=0.1, test_fraction=0.1)),
    "stratified": lambda n, least: p.Iid(
        num_clients=n, holdout=p.Holdout(validation_fraction=0.1, test_fraction=0.1, stratified=True)
    ),
}
SIZES = ["100x50000", "1000x50000", "1000000x10000000"]


def make(name: str, num_clients: int, num_samples: int) -> FederatedDataset:
    rng = np.random.default_rng(0)
    if name == "rotation":
        inputs = torch.from_numpy(rng.integers(0, 256, (num_samples, 4, 4), dtype=np.uint8))
    else:
        inputs = torch.from_numpy(rng.random((num_samples, 3), dtype=np.float32) - 0.5)
    targets = torch.from_numpy(rng.integers(0, 10, num_samples))
    natural = "natural" in name
    offsets = np.arange(num_clients + 1) * num_samples // num_clients if natural else None
    split = Split(inputs=inputs, targets=targets, offsets=offsets)
    ids = [str(c) for c in range(num_clients)] if natural else ()
    return FederatedDataset(name="bench", train=split, client_ids=ids, num_classes=10)


def measure(name: str, num_clients: int, num_samples: int, repeats: int) -> dict[str, Any]:
    """Seconds of each repeat, the least processor time, and the peak of the first."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    dataset = make(name, num_clients, num_samples)
    recipe = RECIPES[name](num_clients, min(10, num_samples // num_clients // 2))
    if name == "from_file":
        p.Iid(num_clients=num_clients).partition(dataset, 0).save(MANIFEST)
    seconds, cpu = [], []
    result: dict[str, Any] = {"partition": name, "clients": num_clients, "samples": num_samples}
    release(device)
    for seed in range(repeats):
        with PeakMemory(device) as memory:
            start, cpu_start = time.perf_counter(), time.process_time()
            owned = recipe(dataset, seed)
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
        if seed == 0:
            result["peak_bytes"] = memory.peak - memory.start
            result["notes"] = list(owned.notes)
        del owned
        release(device)
    MANIFEST.unlink(missing_ok=True)
    return result | {"seconds": seconds, "cpu_seconds": cpu}


def row(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "clients": f"{result['clients']:,}",
        "samples": f"{result['samples']:,}",
        "partition": result["partition"],
        "seconds": f"{min(result['seconds']):.3f}",
        "CPU seconds": f"{min(result['cpu_seconds']):.3f}",
        "peak MiB": f"{result['peak_bytes'] / _MIB:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="clients x samples")
    parser.add_argument("--partitions", default=",".join(RECIPES), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    unknown = set(options.partitions.split(",")) - RECIPES.keys()
    if unknown:
        parser.error(f"no partition {', '.join(sorted(unknown))}; there is {', '.join(RECIPES)}")
    report = header("partition", options, torch.device("cpu"))
    sizes = sorted((int(clients), int(samples)) for clients, samples in (size.split("x") for size in options.sizes))
    results = []
    for name in options.partitions.split(","):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            for size in sizes:
                results.append(pool.apply(measure, (name, *size, options.repeats)))
        print(f"{name}: {[min(r['cpu_seconds']) for r in results[-len(sizes) :]]}", file=sys.stderr, flush=True)
    results.sort(key=lambda result: result["clients"])
    print_report(report, [row(result) for result in results])
    print(f"\nwritten to {write_report(report | {'results': results}, options.out)}")


if __name__ == "__main__":
    main()
