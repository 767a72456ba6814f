"""Does size matter? A million clients, and samples that are mapped from the disk in the place of the memory.

python bench/large.py
python bench/large.py --parts mapped --gib 8 --folder /data

`clients`: what a run does beside training, with a million clients and ten million samples of three numbers, dealt by
hetero-sized Dirichlet class mixes: who trains, the plan of a round, evaluation of every client, the data report.

`mapped`: rounds of clients with 500 images of 784 bytes each, on logistic regression (which reads most for what it
computes): from an array in memory, from a map of a file of `--gib` GiB in a warm page cache, and from the same map
after its pages were dropped (`cold`), with and without reading ahead. Ways take turns, round by round, so that the
machine's other work falls on all of them alike; the ratio of the medians counts.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from report import PeakMemory, header, print_report, release, write_report

from fedsim.algorithms import fedavg
from fedsim.config import LocalConfig
from fedsim.data import report as data_report
from fedsim.data.cache import create_array, map_array
from fedsim.data.federated import FederatedDataset, Normalise, Split
from fedsim.data.partition import DirichletSized, Holdout, LogNormal
from fedsim.evaluate import Evaluator, spread
from fedsim.models import logistic
from fedsim.sampling import Population, uniform
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.vector import FlatModel

CPU = torch.device("cpu")
SAMPLES = 500  # of a client in `mapped`
_MIB = 2**20


def timed(what: str, work: Callable[[], Any], repeats: int = 3) -> tuple[dict[str, Any], Any]:
    """The fastest of some repeats, with the processor time of that one, and the peak of the first."""
    release(CPU)
    seconds, result = [], None
    with PeakMemory(CPU) as memory:
        for _ in range(repeats):
            start, cpu_start = time.perf_counter(), time.process_time()
            result = work()
            seconds.append((time.perf_counter() - start, time.process_time() - cpu_start))
    best, cpu = min(seconds)
    row = {"part": "clients", "what": what, "seconds": best, "cpu_seconds": cpu}
    return row | {"peak_bytes": memory.peak - memory.start}, result


def clients(num_clients: int, num_samples: int, folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.random((num_samples, 3), dtype=np.float32))
    split = Split(inputs=inputs, targets=torch.from_numpy(rng.integers(0, 10, num_samples)))
    bare = FederatedDataset(name="large", train=split, num_classes=10)
    recipe = DirichletSized(
        num_clients=num_clients, alpha=0.1, sizes=LogNormal(sigma=0.5), holdout=Holdout(test_fraction=0.2)
    )
    rows, made = [], recipe.partition(bare, 0)
    row, dataset = timed("apply the partition", lambda: made.apply(bare))
    rows.append(row)
    population = Population(sizes=dataset.train.sizes)
    local = LocalConfig(batch_size=10)
    for cohort in (num_clients // 10_000, num_clients // 100):
        sample = uniform(population, cohort)
        row, chosen = timed(f"sample {cohort:,} clients", lambda s=sample: s(0, 1))
        rows.append(row)
        row, _ = timed(
            f"plan a round of {cohort:,}",
            lambda c=chosen: make_plan(dataset.train, c, local, seed=0, round=1, num_slots=32),
        )
        rows.append(row)
    model = FlatModel(logistic(dataset.input_shape, 10), CPU)
    assert dataset.test is not None
    evaluator = Evaluator(dataset, dataset.test, model)
    row, found = timed(f"evaluate {dataset.test.num_samples:,} samples", lambda: evaluator.per_sample(model.vector), 1)
    rows.append(row)
    row, _ = timed("loss and accuracy of every client", lambda: spread(evaluator.per_client(found)))
    rows.append(row)
    row, _ = timed(
        "data report with pictures and files", lambda: data_report.report(dataset, folder, partition=made), 1
    )
    rows.append(row)
    return rows


def write_images(path: Path, num_samples: int) -> None:
    array = create_array(path, np.uint8, (num_samples, 1, 28, 28))
    rng = np.random.default_rng(0)
    for start in range(0, num_samples, 1 << 16):
        part = array[start : start + (1 << 16)]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    array.flush()  # pyright: ignore[reportAttributeAccessIssue]


def drop(path: Path) -> None:
    """Take the file's pages out of the page cache; those that are mapped and in use stay."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Way:
    """A trainer: its name, its slots, and how it is made for a dataset."""

    name: str
    num_slots: int
    trainer: Callable[[FederatedDataset], SerialTrainer | VectorizedTrainer]


def mapped(gib: float, folder: Path, cohort: int, rounds: int) -> list[dict[str, Any]]:
    path = folder / "inputs.npy"
    num_samples = int(gib * 2**30) // 784 // SAMPLES * SAMPLES
    write_images(path, num_samples)
    targets = torch.from_numpy(np.random.default_rng(1).integers(0, 10, num_samples))
    offsets = np.arange(0, num_samples + 1, SAMPLES)
    local = LocalConfig(batch_size=10, learning_rate=0.01)

    def dataset(inputs: np.ndarray) -> FederatedDataset:
        split = Split(inputs=torch.from_numpy(inputs), targets=targets, offsets=offsets)
        ids = [str(c) for c in range(len(offsets) - 1)]
        return FederatedDataset(name="images", train=split, client_ids=ids, num_classes=10, preprocess=Normalise())

    memory = dataset(np.load(path))
    population = Population(sizes=memory.train.sizes)
    sample = uniform(population, cohort)
    model = FlatModel(logistic((1, 28, 28), 10), CPU)

    def one(way: Way, data: FederatedDataset, round: int) -> float:
        plan = make_plan(data.train, sample(0, round), local, seed=0, round=round, num_slots=way.num_slots)
        trainer = way.trainer(data)
        vector = torch.zeros(model.layout.size)
        first = make_plan(data.train, np.array([0]), local, seed=0, round=round)
        trainer.train(first, vector, scale=2.0**20)  # traces, once for every number of slots
        start = time.perf_counter()
        trainer.train(plan, vector, scale=2.0**20)
        return time.perf_counter() - start

    ways = [
        Way("serial", 1, lambda data: SerialTrainer(data, model, fedavg(), local)),
        Way("vectorized", 20, lambda data: VectorizedTrainer(data, model, fedavg(), local, num_slots=20)),
    ]
    rows = []
    for way in ways:
        seconds: dict[str, list[float]] = {kind: [] for kind in ("memory", "warm", "cold", "cold, not read ahead")}
        warm = dataset(map_array(path))
        int(warm.train.inputs.sum(dtype=torch.int64))  # reads it all once
        for round in range(1, rounds + 1):
            seconds["memory"].append(one(way, memory, round))
            seconds["warm"].append(one(way, warm, round))
        del warm
        for round in range(rounds + 1, 2 * rounds + 1):
            drop(path)
            seconds["cold"].append(one(way, dataset(map_array(path)), round))
            drop(path)
            with mock.patch("fedsim.data.read_ahead.read_ahead", return_value=0):
                seconds["cold, not read ahead"].append(one(way, dataset(map_array(path)), round))
        base = statistics.median(seconds["memory"])
        for kind, values in seconds.items():
            middle = statistics.median(values)
            row = {"part": "mapped", "what": f"{way.name}, {kind}", "seconds": middle, "all": values}
            rows.append(row | {"gib": gib, "times_memory": middle / base})
    return rows


def shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": row["what"],
        "seconds": f"{row['seconds']:.4f}",
        "CPU seconds": f"{row['cpu_seconds']:.4f}" if "cpu_seconds" in row else None,
        "peak MiB": f"{row['peak_bytes'] / _MIB:.0f}" if "peak_bytes" in row else None,
        "times memory": f"{row['times_memory']:.2f}" if "times_memory" in row else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("clients", "mapped"), default=["clients", "mapped"])
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the file")
    parser.add_argument("--cohort", type=int, default=20, help="clients of a round of `mapped`")
    parser.add_argument("--rounds", type=int, default=5, help="of each way")
    parser.add_argument("--folder", type=Path, help="where the file is written; a temporary folder by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = header("large", options, CPU)
    report["settings"].pop("folder")
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if "clients" in options.parts:
            results += clients(options.clients, options.samples, Path(folder) / "report")
        if "mapped" in options.parts:
            results += mapped(options.gib, Path(folder), options.cohort, options.rounds)
    print_report(report, [shown(row) for row in results])
    print(f"\nwritten to {write_report(report | {'results': results}, options.out)}")


if __name__ == "__main__":
    main()
