"""Small federated datasets that need no file."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedDataset, Split

# dp-accounting and TensorBoard bring absl. Its log handler holds the sys.stderr of the time of its import and closes it
# when Hydra sets up logging anew: that must not be the file in which pytest captures.
with contextlib.redirect_stderr(sys.__stderr__), contextlib.suppress(ImportError):
    import absl.logging  # noqa: F401

# Tiny tensors gain nothing from a second thread, and lose much on a busy machine.
torch.set_num_threads(1)

MakeDataset = Callable[..., FederatedDataset]


@pytest.fixture
def make_dataset() -> MakeDataset:
    """Clients of the given sizes whose classes are Gaussian clouds, with a central test set of 200 samples."""

    def make(
        sizes: list[int] | np.ndarray, *, shape: tuple[int, ...] = (12,), num_classes: int = 4, seed: int = 0
    ) -> FederatedDataset:
        rng = np.random.default_rng(seed)
        total = int(np.sum(sizes))
        targets = rng.integers(0, num_classes, total + 200)
        centres = rng.normal(size=(num_classes, *shape))
        inputs = torch.from_numpy((centres[targets] + rng.normal(size=(total + 200, *shape))).astype(np.float32))
        labels = torch.from_numpy(targets)
        return FederatedDataset(
            name="clouds",
            train=Split(inputs=inputs[:total], targets=labels[:total], offsets=np.concatenate([[0], np.cumsum(sizes)])),
            test=Split(inputs=inputs[total:], targets=labels[total:]),
            client_ids=[f"client_{i}" for i in range(len(sizes))],
            num_classes=num_classes,
        )

    return make


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Packed data of the tests goes where they end, and is built once for all of them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code, what it printed, and its run directory."""

    code: int
    out: str
    err: str
    directory: Path


RunFedsim = Callable[..., Finished]


@pytest.fixture
def fedsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunFedsim:
    """Runs `python -m fedsim ARGUMENTS` in this process, in tmp_path, with tmp_path/run as the run directory."""
    from fedsim.cli import main

    def run(*arguments: str, directory: Path | None = None) -> Finished:
        directory = directory or tmp_path / "run"
        resumed = any(a.startswith("checkpoint.resume=") for a in arguments)
        placed = any(a in ("-m", "--cfg") or a.startswith("hydra.run.dir=") for a in arguments)
        where = [] if resumed or placed else [f"hydra.run.dir={directory}"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fedsim", *arguments, *where])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        root = logging.getLogger()
        before = list(root.handlers)
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for handler in [h for h in root.handlers if h not in before]:
                root.removeHandler(handler)
                handler.close()
        printed = capsys.readouterr()
        return Finished(code, printed.out, printed.err, directory)

    return run
