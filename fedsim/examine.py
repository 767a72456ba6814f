"""What a run's models are worth: on the test set and for its clients, each split evaluated once a round at most."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from fedsim.config import EvaluateConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.evaluate import Evaluator
from fedsim.rng import stream
from fedsim.vector import FlatModel

OwnModels = Callable[[list[int]], Iterator[tuple[int, Tensor]]]
"""clients -> each with its own model (P + Q,), which is valid until the next one."""


class Examines(Protocol):
    """Who evaluates the models of a run; the methods are described in `Examiner`.

    Attributes:
        sees_clients: whether `clients` can be asked.
        test: None where there is no test set.
    """

    @property
    def sees_clients(self) -> bool: ...

    @property
    def test(self) -> object | None: ...

    def central(self, vector: Tensor, round: int, *, whole: bool) -> dict[str, float]: ...

    def clients(self, vector: Tensor, round: int, own: OwnModels | None = None) -> pd.DataFrame: ...

    def training_losses(self, vector: Tensor, clients: np.ndarray) -> np.ndarray: ...


class Examiner:
    """Evaluates the models of one run.

    Args:
        dataset: its splits.
        model: the shared module; each evaluation overwrites its vector.
        evaluate: test samples of a quick look, and clients of a thorough one.
        seed: of these draws.
    """

    sees_clients = True

    def __init__(self, dataset: FederatedDataset, model: FlatModel, evaluate: EvaluateConfig, *, seed: int) -> None:
        self.dataset, self.model, self.max_clients, self.seed = dataset, model, evaluate.max_clients, seed
        test = dataset.test
        self.test = None if test is None or not test.num_samples else Evaluator(dataset, test, model)
        self._quick = None if self.test is None else self.test.draw(evaluate.max_samples, seed)
        self._training: Evaluator | None = None
        # (round, evaluator, what it found) of the last thorough look at a split
        self._last: tuple[int, Evaluator, dict[str, np.ndarray]] | None = None

    def central(self, vector: Tensor, round: int, *, whole: bool) -> dict[str, float]:
        """test_loss, test_accuracy and what else the objective measures of a model (P + Q,); {} without a test set.

        Args:
            vector, round: the model, and the round after which it stands.
            whole: all test samples of the clients that are drawn, else those of a quick look.
        """
        if self.test is None:
            return {}
        rows = self.test.of(self._drawn(self.test.split)) if whole else self._quick
        found = self.test.per_sample(vector, rows)
        if whole:
            self._last = (round, self.test, found)
        return {f"test_{name}": self.test.mean(values, rows) for name, values in found.items()}

    def clients(self, vector: Tensor, round: int, own: OwnModels | None = None) -> pd.DataFrame:
        """Every client, or those that are drawn: client, split, samples, loss, accuracy or what else is measured.

        The split is the clients' test samples, else their validation samples, else their training samples. The model is
        the global one; where clients have models of their own, loss and accuracy are those of each client's own model,
        and global_loss and global_accuracy stand beside them; and so on.
        """
        for name in ("test", "validation", "train"):
            split = getattr(self.dataset, name)
            if split is not None and split.owned and split.num_samples:
                break
        else:
            raise AssertionError("a partitioned dataset has owners")
        drawn, last = self._drawn(split), self._last
        if last is None or last[0] != round or last[1].split is not split:
            evaluator = Evaluator(self.dataset, split, self.model)
            last = (round, evaluator, evaluator.per_sample(vector, evaluator.of(drawn)))
        evaluator = last[1]
        frame = evaluator.per_client(last[2], drawn)
        frame.insert(1, "split", name)
        if own is not None:
            frame = frame.rename(columns={figure: f"global_{figure}" for figure in last[2]})
            owners = (np.flatnonzero(split.sizes) if drawn is None else drawn).tolist()
            found = [evaluator.per_sample(mine, split.rows(client)) for client, mine in own(owners)]
            joined = {figure: np.concatenate([one[figure] for one in found]) for figure in last[2]}
            theirs = evaluator.per_client(joined, drawn)
            frame[[*joined]] = theirs[[*joined]]
        return frame

    def _drawn(self, split: Split) -> np.ndarray | None:
        """The clients that a thorough look takes, ascending, with samples each; None: all, or nobody owns the split."""
        owners = np.flatnonzero(split.sizes) if split.owned and self.max_clients is not None else []
        if self.max_clients is None or len(owners) <= self.max_clients:
            return None
        chosen = stream(self.seed, "evaluate_clients").choice(owners, self.max_clients, replace=False)
        return np.sort(chosen)

    def training_losses(self, vector: Tensor, clients: np.ndarray) -> np.ndarray:
        """(n,) mean loss of a model on the training samples of these clients (n,), each with some."""
        if self._training is None:
            self._training = Evaluator(self.dataset, self.dataset.train, self.model)
        losses = self._training.per_sample(vector, self._training.of(clients))["loss"]
        ends = np.cumsum(self.dataset.train.sizes[clients])
        return np.array([part.mean() for part in np.split(losses, ends[:-1])])
