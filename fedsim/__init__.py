"""fedsim: federated learning with thousands to millions of simulated clients on one device.

The names below are loaded when they are first used, so that the command line answers without importing PyTorch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Simulation": "fedsim.simulation",
    "simulate": "fedsim.recording",
    "record": "fedsim.recording",
    "CheckpointConfig": "fedsim.config",
    "ClientStateConfig": "fedsim.config",
    "EvaluateConfig": "fedsim.config",
    "LocalConfig": "fedsim.config",
    "ServerConfig": "fedsim.config",
    "TrackingConfig": "fedsim.config",
    "FederatedDataset": "fedsim.data.federated",
    "from_arrays": "fedsim.data.arrays",
    "from_clients": "fedsim.data.arrays",
    "Split": "fedsim.data.federated",
    "Objective": "fedsim.objective",
}
__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
