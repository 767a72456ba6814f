"""What a run's noise buys: epsilon of client-level differential privacy, by the accountant of dp-accounting.

Rényi differential privacy, composed over rounds (Mironov 2017). Three mechanisms, each under the neighbours that fit
its sampling, with z the standard deviation of the noise in units of the clipping norm C:

- **poisson**: every client takes part with probability q by itself. Neighbours: one client is added or removed, which
  moves the sum by at most C. The Gaussian mechanism with z, amplified by q (Mironov et al. 2019).
- **without_replacement**: m of N clients, m fixed. Neighbours: one client is replaced by another, which moves the sum
  by at most 2 C. The Gaussian mechanism with z / 2, amplified by m / N (Wang et al. 2019, theorem 27 of its long form).
  Many frameworks put Poisson's epsilon in the place of this one, which is larger.
- **local**: each client's own message. Neighbours: any two updates of the client, at most 2 C apart. The Gaussian
  mechanism with z / 2 for each round in which the client took part; sampling amplifies nothing.
"""

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

NEIGHBOURS = {
    "poisson": "a client added or removed",
    "without_replacement": "a client replaced by another",
    "local": "an update of a client replaced by another",
}


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One round of noise.

    Attributes:
        scheme: "poisson", "without_replacement" or "local".
        noise_multiplier: z.
        num_clients: N.
        cohort_size: m, clients a round; under "poisson" their expectation q N. Ignored by "local".
        delta: of (epsilon, delta).
    """

    scheme: str
    noise_multiplier: float
    num_clients: int
    cohort_size: float
    delta: float

    def event(self) -> Any:
        """The round as dp-accounting describes it."""
        dp = _library()
        if self.scheme == "poisson":
            gaussian = dp.GaussianDpEvent(self.noise_multiplier)
            return dp.PoissonSampledDpEvent(min(1.0, self.cohort_size / self.num_clients), gaussian)
        gaussian = dp.GaussianDpEvent(self.noise_multiplier / 2)
        if self.scheme == "without_replacement":
            return dp.SampledWithoutReplacementDpEvent(self.num_clients, int(self.cohort_size), gaussian)
        return gaussian


class Accountant:
    """Epsilon after any number of rounds of one mechanism.

    Raises:
        ValueError: dp-accounting is not installed.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self.delta = mechanism.delta
        self.orders, self.one_round = _one_round(mechanism)

    def epsilon(self, num_rounds: int) -> float:
        """After `num_rounds` rounds."""
        if num_rounds == 0:
            return 0.0
        rdp = importlib.import_module("dp_accounting.rdp")
        return float(rdp.compute_epsilon(self.orders, num_rounds * self.one_round, self.delta)[0])


@lru_cache(maxsize=16)
def _one_round(mechanism: Mechanism) -> tuple[np.ndarray, np.ndarray]:
    """Orders, and the Rényi divergence of one round at each.

    Composition adds these. The library would compute a round again each time it is added, which takes it up to a
    second, so the sum is made here.
    """
    dp = _library()
    relation = "ADD_OR_REMOVE_ONE" if mechanism.scheme == "poisson" else "REPLACE_ONE"
    rdp = importlib.import_module("dp_accounting.rdp")
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation[relation])
    accountant.compose(mechanism.event(), 1)
    return accountant._orders, accountant._rdp


def _library() -> Any:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError as error:
        raise ValueError(
            "differential privacy needs dp-accounting: pip install '.[privacy]' in fedsim's folder"
        ) from error
