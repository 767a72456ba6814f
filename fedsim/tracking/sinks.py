"""Trackers beside the run directory's own files: TensorBoard, Weights & Biases, MLflow, or anything that is a `Sink`.

A sink is a guest: one that fails is named once in a warning and left out from then on, and the run goes on. What it
would have shown is in the run directory all the same. Only a library that is not installed stops a run, before its
first round, for the sink was asked for by name.
"""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pandas as pd
import psutil
import torch

log = logging.getLogger("fedsim")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a sink is told of the run that begins.

    Attributes:
        name: of the experiment.
        directory: the run directory.
        config: resolved configuration as plain values, nested.
        clients: `FederatedDataset.frame()`: one row a client, with its number of samples in the column `train`.
        done: rounds finished before; 0: a new run.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    clients: pd.DataFrame
    done: int = 0

    def identity(self, sink: str) -> str | None:
        """The id that `remember` wrote for `sink` before this run was interrupted; None: a new run."""
        file = self._identity_file(sink)
        return file.read_text(encoding="utf-8").strip() if self.done and file.exists() else None

    def remember(self, sink: str, identity: str | None = None) -> str:
        """Keep the id (a new random one if None) under which `sink` knows this run, for a resume; returns it."""
        identity = identity or uuid.uuid4().hex[:12]
        self._identity_file(sink).write_text(identity + "\n", encoding="utf-8")
        return identity

    def _identity_file(self, sink: str) -> Path:
        return self.directory / f".{sink}_id"


class Sink(Protocol):
    """Where a run is shown. Every method may raise: the run goes on without the sink."""

    def log(self, metrics: Mapping[str, float]) -> None:
        """A round has ended; `metrics["round"]` is its number."""
        ...

    def clients(self, clients: pd.DataFrame) -> None:
        """The final model on every client: client, split, samples, and `figures`: loss, accuracy and so on."""
        ...

    def finish(self, summary: dict[str, Any], files: Sequence[Path]) -> None:
        """The run has ended well: the content of summary.json, and the files of the run directory to keep."""
        ...

    def close(self, status: str) -> None:
        """The last call: "finished", "failed" or "stopped" (by the user)."""
        ...


SinkFactory = Callable[[Run], Sink]


class Sinks:
    """Several sinks as one that never fails; a context manager, which closes them.

    Args:
        factories: name -> factory(run).
        device: whose memory is shown beside the metrics.
    """

    def __init__(self, factories: Mapping[str, SinkFactory], device: torch.device) -> None:
        self.factories, self.device = factories, device
        self.sinks: dict[str, Sink] = {}

    def open(self, run: Run) -> None:
        """The run begins.

        Raises:
            ValueError: a sink's library is not installed.
        """
        for name, factory in self.factories.items():
            try:
                self.sinks[name] = factory(run)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"tracking={name} needs {error.name}: pip install '.[tracking]' in fedsim's folder, or leave it out"
                ) from error
            except Exception as error:
                self._drop(name, error)

    def log(self, metrics: Mapping[str, float]) -> None:
        if self.sinks:
            self._each("log", {**metrics, **system_memory(self.device)})

    def clients(self, clients: pd.DataFrame) -> None:
        self._each("clients", clients)

    def finish(self, summary: dict[str, Any], files: Sequence[Path]) -> None:
        self._each("finish", summary, files)

    def close(self, status: str) -> None:
        self._each("close", status)
        self.sinks = {}

    def _each(self, method: str, *arguments: Any) -> None:
        for name, sink in list(self.sinks.items()):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self.sinks.pop(name, None)
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning(f"tracking={name} failed and is left out from here on; the run goes on ({reason[:300]})")

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close("finished" if kind is None else "stopped" if kind is KeyboardInterrupt else "failed")


def figures(clients: pd.DataFrame) -> list[str]:
    """The columns that tell how well each client is served: loss, accuracy and what else was measured."""
    return [name for name in clients.columns if name not in ("client", "split", "samples")]


def system_memory(device: torch.device) -> dict[str, float]:
    """Bytes in use now: by this process, by the whole machine, and on the GPU if there is one."""
    memory = {
        "system/process_bytes": float(psutil.Process().memory_info().rss),
        "system/machine_used_bytes": float(psutil.virtual_memory().used),
    }
    if device.type == "cuda":
        memory["system/gpu_bytes"] = float(torch.cuda.memory_allocated(device))
    return memory
