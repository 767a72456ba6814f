"""Where an asynchronous server's updates come from, and in which order: `Virtual`, from the times of simulated devices;
`Live`, from other processes as they are done; `Recorded`, as they came in a run before.

The server steps along sums that have no order (`fedsim.aggregate`), so its model is a function of who has arrived
before which step, from which version. That is what arrivals.csv in the run directory tells.
"""

from typing import Any

import numpy as np

from fedsim.arrivals.base import Arrivals
from fedsim.arrivals.live import Live
from fedsim.arrivals.recorded import read_arrivals
from fedsim.arrivals.virtual import Virtual
from fedsim.config import LocalConfig, ServerConfig
from fedsim.devices import Devices, samples_trained
from fedsim.events import make_queue, refuse_ends
from fedsim.sampling import cohort_size


def make_arrivals(
    devices: Devices | None,
    sizes: np.ndarray,
    local: LocalConfig,
    config: ServerConfig,
    *,
    num_updates: int,
    elsewhere: bool,
    download_bytes: int,
    upload_bytes: int,
    seed: int,
) -> Arrivals:
    """The arrivals of a run, at its beginning.

    Args:
        devices: of all clients; None: arrivals are real, or recorded.
        sizes: (C,) training samples of each.
        local: says how many of them a client computes.
        config: of the server.
        num_updates: that the server waits for before it steps.
        elsewhere: whether other processes train.
        download_bytes, upload_bytes: to and from each client.
        seed: of the run.

    Raises:
        ValueError: there is nothing that updates could arrive by, or settings of synchronous rounds.
    """
    sent: dict[str, Any] = {"download_bytes": download_bytes, "upload_bytes": upload_bytes, "seed": seed}
    if config.arrivals is not None:
        refuse_ends(config)
        return read_arrivals(config.arrivals, sizes, num_updates)
    if devices is None and elsewhere:
        refuse_ends(config)
        concurrency = cohort_size(config.clients_per_round, len(sizes))
        return Live(work=samples_trained(sizes, local), concurrency=concurrency, **sent)
    return Virtual(make_queue(devices, sizes, local, config, **sent))


__all__ = ["Arrivals", "Live", "make_arrivals"]
