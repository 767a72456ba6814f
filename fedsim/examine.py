"""What a run's models are worth: on the test set and for every client, each split evaluated once a round at most."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from fedsim.data.federated import FederatedDataset
from fedsim.evaluate import Evaluator
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
        max_samples: test samples of a quick look, a seeded draw; None: all.
        seed: of that draw.
    """

    sees_clients = True

    def __init__(self, dataset: FederatedDataset, model: FlatModel, *, max_samples: int | None, seed: int) -> None:
        self.dataset, self.model = dataset, model
        test = dataset.test
        self.test = None if test is None or not test.num_samples else Evaluator(dataset, test, model)
        self._quick = None if self.test is None else self.test.draw(max_samples, seed)
        self._training: Evaluator | None = None
        # (round, evaluator, losses, hits) of the last evaluation of a whole split
        self._last: tuple[int, Evaluator, np.ndarray, np.ndarray] | None = None

    def central(self, vector: Tensor, round: int, *, whole: bool) -> dict[str, float]:
        """test_loss and test_accuracy of a model (P + Q,); {} without a test set.

        Args:
            vector, round: the model, and the round after which it stands.
            whole: all test samples, else those of a quick look.
        """
        if self.test is None:
            return {}
        rows = None if whole else self._quick
        losses, hits = self.test.per_sample(vector, rows)
        if whole:
            self._last = (round, self.test, losses, hits)
        return {"test_loss": self.test.mean(losses, rows), "test_accuracy": self.test.mean(hits, rows)}

    def clients(self, vector: Tensor, round: int, own: OwnModels | None = None) -> pd.DataFrame:
        """Every client: client, split, samples, loss, accuracy.

        The split is the clients' test samples, else their validation samples, else their training samples. The model is
        the global one; where clients have models of their own, loss and accuracy are those of each client's own model,
        and global_loss and global_accuracy stand beside them.
        """
        for name in ("test", "validation", "train"):
            split = getattr(self.dataset, name)
            if split is not None and split.owned and split.num_samples:
                break
        else:
            raise AssertionError("a partitioned dataset has owners")
        last = self._last
        if last is None or last[0] != round or last[1].split is not split:
            evaluator = Evaluator(self.dataset, split, self.model)
            last = (round, evaluator, *evaluator.per_sample(vector))
        evaluator = last[1]
        frame = evaluator.per_client(*last[2:])
        frame.insert(1, "split", name)
        if own is not None:
            frame = frame.rename(columns={"loss": "global_loss", "accuracy": "global_accuracy"})
            owners = np.flatnonzero(split.sizes).tolist()
            found = [evaluator.per_sample(mine, split.rows(client)) for client, mine in own(owners)]
            losses, hits = (np.concatenate(parts) for parts in zip(*found, strict=True))
            theirs = evaluator.per_client(losses, hits)
            frame["loss"], frame["accuracy"] = theirs["loss"], theirs["accuracy"]
        return frame

    def training_losses(self, vector: Tensor, clients: np.ndarray) -> np.ndarray:
        """(n,) mean loss of a model on the training samples of these clients (n,), each with some."""
        if self._training is None:
            self._training = Evaluator(self.dataset, self.dataset.train, self.model)
        rows = [self.dataset.train.rows(c) for c in clients.tolist()]
        losses, _ = self._training.per_sample(vector, np.concatenate(rows))
        return np.array([part.mean() for part in np.split(losses, np.cumsum([len(r) for r in rows])[:-1])])
