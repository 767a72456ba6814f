"""The run directory: what a run leaves behind, in files that any tool reads.

metrics.jsonl and metrics.csv have a row for each round; arrivals.csv, of asynchronous runs over real workers, one for
each update (`fedsim.arrivals.base.Arrival`); clients.csv the last per-client evaluation; partition.json who
owns how much of what; config.yaml the resolved configuration; summary.json the outcome; model.safetensors the final
model by parameter name.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from torch import Tensor

from fedsim.files import CHECKPOINT, write_tensors, write_text
from fedsim.tracking.readback import read_metrics

# Written anew by every run; what is left of another one would be taken for this one's.
_ARRIVALS = "arrivals.csv"
_OF_A_RUN = (
    CHECKPOINT,
    _ARRIVALS,
    "summary.json",
    "trainer.json",
    "clients.csv",
    "partition.json",
    "model.safetensors",
)


class RunDirectory:
    """Writes a run's files.

    Args:
        path: the directory; made if need be.
        keep_rounds: rows of earlier rounds, up to this one, stay (a resumed run); later ones are dropped. 0: a run that
            begins anew, and what an earlier one has left here goes, its checkpoint first: its rows go too.

    Raises:
        ValueError: the directory cannot be written.
    """

    def __init__(self, path: Path, *, keep_rounds: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not keep_rounds:
                for name in _OF_A_RUN:
                    (path / name).unlink(missing_ok=True)
            else:
                self.rows = [row for row in read_metrics(path) if row["round"] <= keep_rounds]
                self._keep_arrivals(keep_rounds)
            write_text(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
            self._write_csv()
        except OSError as error:
            raise ValueError(f"cannot write to the run directory {path} ({error}); set hydra.run.dir") from error
        self.columns = set().union(*self.rows)

    def forget_outcome(self) -> None:
        """Remove what says that the run has ended: a shorter one had, and this one goes on."""
        for name in ("summary.json", "clients.csv", "model.safetensors"):
            (self.path / name).unlink(missing_ok=True)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a round to metrics.jsonl and metrics.csv."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        self.rows.append(metrics)  # what `rows` has is in the file, whenever an interrupt comes
        if self.columns.issuperset(metrics):
            with (self.path / "metrics.csv").open("a", encoding="utf-8", newline="") as file:
                # A frame of one row would take milliseconds, as long as many a round.
                row = (metrics.get(name) for name in self.header)
                csv.writer(file, lineterminator=os.linesep).writerow(["" if v != v else v for v in row])  # NaN: a gap
        else:  # a metric seen for the first time adds a column to every row
            self.columns |= set(metrics)
            self._write_csv()

    def log_arrivals(self, rows: list[dict[str, Any]]) -> None:
        """Append a round's updates to arrivals.csv, before the round's metrics; "round" is their first column."""
        file = self.path / _ARRIVALS
        lines = [] if file.exists() or not rows else [list(rows[0])]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*lines, *(row.values() for row in rows)])
        if rows:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(text.getvalue())

    def _keep_arrivals(self, keep_rounds: int) -> None:
        file = self.path / _ARRIVALS
        if file.exists():
            header, *lines = file.read_text(encoding="utf-8").split("\n")[:-1]
            kept = [line for line in lines if int(line.split(",")[0]) <= keep_rounds]
            write_text(file, "".join(line + "\n" for line in (header, *kept)))

    def sync(self) -> None:
        """Flush the metrics to the disk, so that no checkpoint is newer than its rows."""
        for name in ("metrics.jsonl", _ARRIVALS):
            if (self.path / name).exists():
                with (self.path / name).open("rb") as file:
                    os.fsync(file.fileno())

    def _write_csv(self) -> None:
        frame = pd.DataFrame(self.rows)
        self.header = list(frame.columns)
        write_text(self.path / "metrics.csv", frame.to_csv(index=False) if self.rows else "")

    def write_config(self, config: dict[str, Any]) -> None:
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    def write_trainer(self, trainer: dict[str, Any]) -> None:
        """The trainer that trainer=auto chose, for a resume to take it too."""
        write_text(self.path / "trainer.json", json.dumps(trainer) + "\n")

    def write_partition(self, outline: dict[str, Any]) -> None:
        write_text(self.path / "partition.json", json.dumps(outline) + "\n")

    def write_clients(self, clients: pd.DataFrame) -> None:
        write_text(self.path / "clients.csv", clients.to_csv(index=False))

    def write_model(self, state: dict[str, Tensor]) -> None:
        """Raises OSError: the disk is full or not writable."""
        try:
            write_tensors(self.path / "model.safetensors", state)
        except OSError as error:
            again = f"free some space there and give checkpoint.resume={self.path}"
            raise OSError(f"cannot write the model in {self.path} ({error}); {again}") from error

    def outcome(self) -> list[Path]:
        """The files that are worth keeping elsewhere."""
        names = (
            "config.yaml",
            "metrics.jsonl",
            "metrics.csv",
            _ARRIVALS,
            "clients.csv",
            "partition.json",
            "summary.json",
        )
        return [self.path / name for name in (*names, "model.safetensors") if (self.path / name).exists()]

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
