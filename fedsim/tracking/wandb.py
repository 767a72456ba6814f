"""Weights & Biases, offline unless told otherwise: `wandb sync RUN_DIR/wandb/offline-run-*` sends a run later.

No key stands in a configuration; to be online, `wandb login` once, or set WANDB_API_KEY. W&B goes on with a run only
where it can ask its server, so a resumed run that is offline begins a new folder under the run's id and tells it all
earlier rounds again: the newest folder is the whole run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.tracking.readback import read_metrics
from fedsim.tracking.sinks import Run, figures


class Wandb:
    """Metrics by round, histograms over clients, the configuration, the summary and the final files.

    Args:
        run: what begins.
        project, entity, group: as `wandb.init` takes them; entity None is the account's own.
        mode: "offline" or "online".
    """

    def __init__(
        self,
        run: Run,
        *,
        project: str = "fedsim",
        entity: str | None = None,
        group: str | None = None,
        mode: str = "offline",
    ) -> None:
        import wandb

        if mode not in ("offline", "online"):
            raise ValueError(f"tracking.sinks.wandb.mode must be offline or online, got {mode!r}")
        known = run.identity("wandb")
        self.histogram = wandb.Histogram
        self.directory = run.directory
        self.run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            mode=mode,
            name=run.name,
            id=known or run.remember("wandb"),
            resume="allow" if known and mode == "online" else None,
            dir=str(run.directory),
            config=run.config,
            settings=wandb.Settings(console="off", silent=mode == "offline"),
        )
        self.run.define_metric("*", step_metric="round")
        for row in read_metrics(run.directory) if known and mode == "offline" else ():
            self.log(row)
        self.run.summary["clients/train_samples"] = wandb.Histogram(run.clients["train"].tolist())

    def log(self, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=int(metrics["round"]))

    def clients(self, clients: pd.DataFrame) -> None:
        for name in figures(clients):
            self.run.summary[f"clients/{name}"] = self.histogram(clients[name].tolist())

    def finish(self, summary: dict[str, Any], files: Sequence[Path]) -> None:
        self.run.summary.update(summary)
        for file in files:
            self.run.save(str(file), base_path=str(self.directory), policy="end")

    def close(self, status: str) -> None:
        self.run.finish(exit_code={"finished": 0, "stopped": 130}.get(status, 1))
