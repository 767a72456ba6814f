"""What the drivers share: the workload from its files, the talk with `run.py`, and the models in plain PyTorch.

Needs NumPy only, and PyTorch where a driver asks for it; never fedsim. A driver is run as

    python -m peers.NAME FOLDER --way WAY --threads 2 [--in-order]

and speaks in lines that begin with "@bench ". Twice it waits for an answer: when all is loaded and the first round may
begin, and after the last round, so that `run.py` sees the memory of the whole process tree at the right moments.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to do, and how.

    Attributes:
        folder, name, rate, batch, classes: of the workload; `bench/workloads.py` states it.
        inputs: (N, 1, 28, 28) float32.
        targets: (N,) int64.
        offsets: (C + 1,) int64: client c has the samples offsets[c] ... offsets[c + 1] - 1.
        cohorts: (rounds, m) int64.
        parameters: the initial ones, in PyTorch's order and layouts.
        way: of the peer's own ways, "" where it has one.
        threads: cores to use.
        shuffle: whether clients shuffle; without, every peer must end in naive's model.
    """

    folder: Path
    name: str
    rate: float
    batch: int
    classes: int
    inputs: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray
    cohorts: np.ndarray
    parameters: list[np.ndarray]
    way: str = ""
    threads: int = 1
    shuffle: bool = True

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def spans(self) -> list[slice]:
        """Each client's samples."""
        return [slice(*span) for span in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)]


def read(folder: str | Path, *, mapped: bool = False, **how: Any) -> Work:
    """The workload that `workloads.dump` left; `mapped` inputs stay on the disk, for several processes to share."""
    folder = Path(folder)
    rest = dict(np.load(folder / "rest.npz"))
    parameters = [rest.pop(f"p{i}") for i in range(sum(key.startswith("p") for key in rest))]
    inputs = np.load(folder / "inputs.npy", mmap_mode="r" if mapped else None)
    settings = json.loads((folder / "settings.json").read_text())
    return Work(folder=folder, inputs=inputs, parameters=parameters, **rest, **settings, **how)


def load(*, mapped: bool = False) -> Work:
    """The workload of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--way", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-order", action="store_true")
    given = parser.parse_args()
    return read(given.folder, mapped=mapped, way=given.way, threads=given.threads, shuffle=not given.in_order)


class Rounds:
    """The stop-watch. A round is choosing clients, training and averaging; evaluation is not."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def ready(self) -> None:
        """Imports, samples and the initial model are there: memory above this moment counts."""
        _ask("ready")
        self.resume()

    def resume(self) -> None:
        """Start the clock anew: what happened since the last round does not count."""
        self.begin = time.perf_counter()

    def done(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.begin)
        self.begin = time.perf_counter()

    def finish(self, work: Work, parameters: list[np.ndarray], **about: Any) -> None:
        """After the last round: report, and leave the global model for `run.py` to compare.

        Args:
            parameters: in PyTorch's order and layouts.
            about: versions and notes for the table.
        """
        _ask("done")
        np.savez(work.folder / "result.npz", *parameters)
        _tell(seconds=self.seconds, **about)


def _tell(**fields: Any) -> None:
    print("@bench " + json.dumps(fields), flush=True)


def _ask(event: str) -> None:
    _tell(event=event)
    sys.stdin.readline()


def model(work: Work) -> "nn.Module":
    """The workload's model in PyTorch, with the initial parameters."""
    import torch
    from torch import nn

    if work.name == "W1":
        net = nn.Sequential(
            *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, work.classes)),
        )
    else:
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, work.classes))
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), work.parameters, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return net


def values(net: "nn.Module") -> list[np.ndarray]:
    """The parameters, in order."""
    return [p.detach().cpu().numpy().copy() for p in net.parameters()]


def clients(work: Work) -> "list[TensorDataset]":
    """A dataset for each client; all are views of the same two tensors."""
    import torch
    from torch.utils.data import TensorDataset

    x, y = torch.from_numpy(work.inputs), torch.from_numpy(work.targets)
    return [TensorDataset(x[span], y[span]) for span in work.spans]


def batches(work: Work, client: "TensorDataset", **how: Any) -> "DataLoader":
    """A client's minibatches, as most simulators make them."""
    from torch.utils.data import DataLoader

    return DataLoader(client, batch_size=work.batch, shuffle=work.shuffle, **how)
