"""The settings of a run: frozen dataclasses that are also Hydra's schema. Each says what is wrong and how to mend it.

Nothing is imported here but the standard library, so that the command line answers at once, and so that every other
module may use these.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from fedsim.config.around import (
    CheckpointConfig,
    ClientStateConfig,
    DeploymentConfig,
    EvaluateConfig,
    TrackingConfig,
    TransportConfig,
)
from fedsim.config.training import LocalConfig, ScheduleConfig, ServerConfig

__all__ = [
    "CheckpointConfig",
    "ClientStateConfig",
    "Config",
    "DeploymentConfig",
    "EvaluateConfig",
    "LocalConfig",
    "ScheduleConfig",
    "ServerConfig",
    "TrackingConfig",
    "TransportConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run, as composed from conf/. The dictionaries are `_target_` factories with their arguments.
    `transforms` has one of them for each name, in the order in which they change an update; no `attack` and no
    `devices` is none, and no `objective` is what the data are for.

    Attributes:
        name: of the experiment; part of the run directory's path.
        seed: of everything that is drawn.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        role: of this process: "local" (a whole run), or one node of a run: "server", "scheduler", "worker".
    """

    name: str = "fedsim"
    role: str = "local"
    seed: int = 0
    device: str = "auto"
    data: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)
    aggregator: dict[str, Any] = field(default_factory=dict)
    transforms: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    local: LocalConfig = field(default_factory=LocalConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    client_state: ClientStateConfig = field(default_factory=ClientStateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    deployment: DeploymentConfig = field(default_factory=DeploymentConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.role not in ("local", "server", "scheduler", "worker"):
            raise ValueError(f"role must be local, server, scheduler or worker, got {self.role!r}")
        if self.role == "local" and self.transport.name == "inprocess":
            for name in ("num_workers", "tree", "address"):
                if getattr(self.transport, name) is not None:
                    raise ValueError(f"transport.{name} has no effect in one process; add transport=torch_distributed")
