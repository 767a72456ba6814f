"""MLflow, into a local folder unless told otherwise.

MLflow 3 keeps its folder store working but no longer develops it, and asks for MLFLOW_ALLOW_FILE_STORE=true, which is
set here for the run; `MLFLOW_ALLOW_FILE_STORE=true mlflow ui` shows the folder. Its database is one option away:
tracking.sinks.mlflow.tracking_uri=sqlite:///mlflow.db.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedsim.tracking.readback import flat
from fedsim.tracking.sinks import Run, figures

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_PARAMETERS_A_CALL = 100  # MLflow's limit
_VALUE_LENGTH = 6000  # the same


class MLflow:
    """Metrics by round, quantiles over clients, the configuration as parameters, the final files as artefacts.

    Args:
        run: what begins.
        experiment: MLflow's experiment; None: the run's name.
        tracking_uri: a folder, or any address that MLflow takes.
    """

    def __init__(self, run: Run, *, experiment: str | None = None, tracking_uri: str = "mlruns") -> None:
        local = "://" not in tracking_uri
        if local:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.metric = Metric
        self.client = MlflowClient(tracking_uri=Path(tracking_uri).resolve().as_uri() if local else tracking_uri)
        known = run.identity("mlflow")
        if known is not None:
            self.id = known
            self.client.set_terminated(known, status="RUNNING", end_time=None)
        else:
            self.id = self.client.create_run(self._experiment(experiment or run.name), run_name=run.name).info.run_id
            run.remember("mlflow", self.id)
            params = [Param(key, str(value)[:_VALUE_LENGTH]) for key, value in flat(run.config).items()]
            for start in range(0, len(params), _PARAMETERS_A_CALL):
                self.client.log_batch(self.id, params=params[start : start + _PARAMETERS_A_CALL])
            self.client.set_tag(self.id, "run_directory", str(run.directory))
            self._quantiles("clients.train_samples", run.clients["train"], 0)
        self.round = run.done

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(name)) is None:
            with suppress(MlflowException):  # another job of a sweep may be first
                return self.client.create_experiment(name)
            found = self.client.get_experiment_by_name(name)
        assert found is not None
        return found.experiment_id

    def log(self, metrics: Mapping[str, float]) -> None:
        self.round = int(metrics["round"])
        self._batch({name: value for name, value in metrics.items() if name != "round"}, self.round)

    def _batch(self, values: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [self.metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def _quantiles(self, name: str, values: npt.ArrayLike, step: int) -> None:
        found = np.quantile(np.asarray(values), _QUANTILES)
        self._batch({f"{name}.q{100 * q:02.0f}": value for q, value in zip(_QUANTILES, found, strict=True)}, step)

    def clients(self, clients: pd.DataFrame) -> None:
        for name in figures(clients):
            self._quantiles(f"clients.{name}", clients[name], self.round)

    def finish(self, summary: dict[str, Any], files: Sequence[Path]) -> None:
        self._batch({f"final.{name}": value for name, value in summary["final"].items()}, self.round)
        for file in files:
            self.client.log_artifact(self.id, str(file))

    def close(self, status: str) -> None:
        self.client.set_terminated(self.id, status={"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))
