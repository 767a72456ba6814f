"""TensorBoard: `tensorboard --logdir outputs` shows every run below that folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.tracking.readback import flat
from fedsim.tracking.sinks import Run, figures


class TensorBoard:
    """Scalars by round, histograms over clients, the configuration as text and as hyperparameters.

    TensorBoard keeps no files: the paths of the final ones stand in the text `files`.

    Args:
        run: what begins.
        folder: of the event files, inside the run directory.
    """

    def __init__(self, run: Run, *, folder: str = "tensorboard") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # On a resume, what was logged of rounds that are trained again is taken back.
        purge = run.done + 1 if run.done else None
        self.writer = SummaryWriter(str(run.directory / folder), purge_step=purge)
        self.config, self.round = flat(run.config), run.done
        self.writer.add_text("config", _code(json.dumps(run.config, indent=2)), run.done)
        self.writer.add_histogram("clients/train_samples", run.clients["train"].to_numpy(), run.done)

    def log(self, metrics: Mapping[str, float]) -> None:
        self.round = int(metrics["round"])
        for name, value in metrics.items():
            if name != "round":
                self.writer.add_scalar(name, value, self.round)

    def clients(self, clients: pd.DataFrame) -> None:
        for name in figures(clients):
            self.writer.add_histogram(f"clients/{name}", clients[name].to_numpy(), self.round)

    def finish(self, summary: dict[str, Any], files: Sequence[Path]) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.writer.add_text("summary", _code(json.dumps(summary, indent=2)), self.round)
        self.writer.add_text("files", "\n".join(f"- {file}" for file in files), self.round)
        settings = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.config.items()}
        outcome = {f"final/{name}": value for name, value in summary["final"].items()}
        for event in hparams(settings, outcome):
            self.writer._get_file_writer().add_summary(event)
        for name, value in outcome.items():
            self.writer.add_scalar(name, value, self.round)

    def close(self, status: str) -> None:
        self.writer.add_text("status", status, self.round)
        self.writer.close()


def _code(text: str) -> str:
    """As Markdown shows it verbatim."""
    return "".join(f"    {line}\n" for line in text.splitlines())
