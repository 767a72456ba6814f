"""Evaluation of one model on all samples of a split, and of every client at once by a sum over its segment.

The mean over samples weights a sequence by its places that count, so that the accuracy of a language model is a share
of its predictions.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.resident import ResidentSplit
from fedsim.denormals import flushed_denormals
from fedsim.objective import num_places
from fedsim.rng import stream
from fedsim.train.precision import products
from fedsim.vector import FlatModel

# Samples at once: on a CPU so many that activations stay near, half as slow again with 512 for LEAF's CNN.
_BATCH = {"cpu": 128, "cuda": 1024}


class Evaluator:
    """Evaluates models on one split.

    Args:
        dataset: for its preprocessing and its clients' names.
        split: the samples.
        model: the shared module; each evaluation overwrites its vector.
    """

    def __init__(self, dataset: FederatedDataset, split: Split, model: FlatModel) -> None:
        self.dataset, self.split, self.model = dataset, split, model
        self.data = ResidentSplit(dataset, split, model.device)
        self.rows = np.arange(split.num_samples) if split.order is None else split.order[: split.num_samples]

    def draw(self, max_samples: int | None, seed: int) -> np.ndarray:
        """The rows of a seeded draw of at most `max_samples` samples, without replacement; None: all."""
        if max_samples is None or max_samples >= len(self.rows):
            return self.rows
        return self.rows[np.sort(stream(seed, "evaluate").choice(len(self.rows), max_samples, replace=False))]

    def of(self, clients: np.ndarray | None) -> np.ndarray | None:
        """The rows of these clients (m,), client after client; None: everyone's, None."""
        return None if clients is None else np.concatenate([self.split.rows(c) for c in clients.tolist()])

    @torch.no_grad()
    @flushed_denormals()
    def per_sample(self, vector: Tensor, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The loss, and what else the objective measures, of each row (all, in the clients' order, if None): (n,)
        float64 each, by name."""
        self.model.load(vector)
        self.model.module.eval()
        found: dict[str, list[Tensor]] = {"loss": [], **{name: [] for name in self.dataset.objective.metrics}}
        on_device = self.data.rows(self.rows if rows is None else rows)
        with products("float32", self.model.device):
            for inputs, targets in self.data.gather_all(on_device.split(_BATCH[self.model.device.type])):
                figures = self.dataset.objective.measure(self.model.module(inputs), targets)
                for name, values in figures.items():
                    found[name].append(values)
        return {name: torch.cat(parts).double().cpu().numpy() for name, parts in found.items()}

    def places(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(n,) float64: the places that count of each row (all, in the clients' order, if None)."""
        rows = self.rows if rows is None else rows
        if self.split.targets.dim() == 1 or self.dataset.objective.targets != "classes":
            return np.ones(len(rows))
        # few at once: the targets of a large set are mapped from the disk
        blocks = (rows[start : start + (1 << 16)] for start in range(0, len(rows), 1 << 16))
        counted = [num_places(self.split.targets[torch.from_numpy(block)]) for block in blocks]
        return torch.cat(counted).double().numpy()

    def mean(self, values: np.ndarray, rows: np.ndarray | None = None) -> float:
        """Mean of what `per_sample` gave for the same rows, over their places."""
        places = self.places(rows)
        return math.fsum(values * places) / max(1.0, math.fsum(places))

    def per_client(self, figures: Mapping[str, np.ndarray], clients: np.ndarray | None = None) -> pd.DataFrame:
        """One row for each client: client, samples, loss, accuracy and so on (means over its samples' places).

        Args:
            figures: (n,) each, what `per_sample` gave for the rows of the clients.
            clients: (m,) with samples each, ascending; None: all that have some.
        """
        assert self.split.offsets is not None, "nobody owns these samples"
        kept = np.flatnonzero(self.split.sizes) if clients is None else clients
        sizes = self.split.sizes[kept]
        owner = np.repeat(np.arange(len(kept)), sizes)
        places = self.places(self.of(clients))
        weights = np.bincount(owner, places, len(kept)).clip(min=1)
        return pd.DataFrame(
            {
                "client": [self.dataset.client_ids[c] for c in kept.tolist()],
                "samples": sizes,
                **{n: np.bincount(owner, values * places, len(kept)) / weights for n, values in figures.items()},
            }
        )


def spread(clients: pd.DataFrame) -> dict[str, float]:
    """Statistics of the clients' accuracies, or of their losses where there are none: the mean over samples and over
    clients, percentiles, worst, deviation; where clients have models of their own, also those of the global one."""
    name = "accuracy" if "accuracy" in clients else "loss"
    found = _statistics(clients, name, name)
    if f"global_{name}" in clients:
        of_global = _statistics(clients, f"global_{name}", name)
        found |= {f"global_{statistic}": value for statistic, value in of_global.items()}
    return found


def _statistics(clients: pd.DataFrame, column: str, name: str) -> dict[str, float]:
    values = clients[column].to_numpy()
    p10, p50, p90 = np.percentile(values, [10, 50, 90])
    found = {
        "weighted": np.average(values, weights=clients["samples"]),
        "mean": values.mean(),
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "worst": values.min() if name == "accuracy" else values.max(),
        "std": values.std(),
    }
    return {f"client_{name}_{statistic}": float(value) for statistic, value in found.items()}
