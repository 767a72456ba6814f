"""Who trains in a round: pure functions of (seed, round), so that a resumed run draws the same cohorts."""

from collections.abc import Callable

import numpy as np

from fedsim.rng import stream

Sampler = Callable[[int, int], np.ndarray]
"""(seed, round) -> the cohort: (m,) int64 client indices, sorted."""


def cohort_size(clients_per_round: int | float, num_clients: int) -> int:
    """Clients a round from a count (an int) or a fraction (a float up to 1.0, rounded, at least one client).

    Raises:
        ValueError: outside 1 ... num_clients.
    """
    if isinstance(clients_per_round, float):
        if not 0 < clients_per_round <= 1:
            raise ValueError(
                f"server.clients_per_round={clients_per_round}: a fraction must be in (0, 1], a count an integer"
            )
        return max(1, round(clients_per_round * num_clients))
    if not 1 <= clients_per_round <= num_clients:
        raise ValueError(
            f"server.clients_per_round={clients_per_round}, but there are {num_clients} clients: "
            f"choose 1 to {num_clients}, or a fraction such as 0.1"
        )
    return clients_per_round


def uniform(num_clients: int, clients_per_round: int | float) -> Sampler:
    """Uniform without replacement (McMahan et al. 2017, Algorithm 1)."""
    size = cohort_size(clients_per_round, num_clients)

    def sample(seed: int, round: int) -> np.ndarray:
        return np.sort(stream(seed, "cohort", round).choice(num_clients, size, replace=False, shuffle=False))

    return sample
