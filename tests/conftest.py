"""Small federated datasets that need no file, small files in true formats, and a command line in this process."""

import contextlib
import json
import logging
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from fedsim.data.federated import FederatedDataset, Split

# dp-accounting and TensorBoard bring absl. Its log handler holds the sys.stderr of the time of its import and closes it
# when Hydra sets up logging anew: that must not be the file in which pytest captures.
with contextlib.redirect_stderr(sys.__stderr__), contextlib.suppress(ImportError):
    import absl.logging  # noqa: F401

# Tiny tensors gain nothing from a second thread, and lose much on a busy machine.
torch.set_num_threads(1)

# How long an example takes says more of the machine than of the code. The examples of a test are always the same, so
# that what it says of a change is; --hypothesis-profile=explore draws others.
settings.register_profile("fedsim", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("fedsim")

MakeDataset = Callable[..., FederatedDataset]


def pytest_runtest_setup() -> None:
    """A model that a test draws without a seed is the same whatever ran before it in its process."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, those with most of them at the head: at the end no process waits for another."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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


def _idx(path: Path, array: np.ndarray) -> None:
    """Write an array in the format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("train", 1200), ("t10k", 50)):
        raw = tmp_path / "data" / "MNIST" / "raw"
        _idx(raw / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        _idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(size) % 10).astype(np.uint8))
    return tmp_path / "data"


@pytest.fixture
def leaf_root(tmp_path: Path) -> Path:
    """LEAF's sent140, reddit and celeba in small."""
    root, images = tmp_path / "leaf", tmp_path / "leaf" / "celeba" / "raw" / "img_align_celeba"
    images.mkdir(parents=True)
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(images / "1.png")
    samples = {
        "sent140": (["", "", "", "", "so good !"], 1),
        "reddit": ([["<BOS>", "so", "good"]], {"target_tokens": [["so", "good", "<PAD>"]]}),
        "celeba": ("1.png", 0),
    }
    for name, (x, y) in samples.items():
        data = {user: {"x": [x, x, x], "y": [y, y, y]} for user in ("ann", "bob", "cy")}
        for split in ("train", "test"):
            (root / name / "data" / split).mkdir(parents=True)
            content = {"users": list(data), "num_samples": [3, 3, 3], "user_data": data}
            (root / name / "data" / split / "all_data.json").write_text(json.dumps(content))
    return root
