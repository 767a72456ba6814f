"""How different clients are: measures of class counts (C, K) and of sizes (C,).

Distances are between a client's class mix p and the mix q of all samples together. Both are metrics between 0 (the
same mix) and 1 (no class in common):

- Hellinger: sqrt(1 - sum_k sqrt(p_k q_k));
- Jensen-Shannon: the square root of the divergence in bits, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2
  (Endres and Schindelin 2003).
"""

from collections.abc import Callable

import numpy as np

_CHUNK = 1 << 16  # clients whose mixes are in memory at once


def hellinger(counts: np.ndarray) -> np.ndarray:
    """(C, K) class counts to (C,) float64 Hellinger distances to the mix of all; NaN where a client has no samples."""
    overall = _overall(counts)
    return _by_client(counts, lambda own: np.sqrt(np.maximum(1 - np.sqrt(own * overall).sum(1), 0)))


def jensen_shannon(counts: np.ndarray) -> np.ndarray:
    """(C, K) class counts to (C,) float64 Jensen-Shannon distances to the mix of all; NaN for a client without any."""
    overall = _overall(counts)

    def distance(own: np.ndarray) -> np.ndarray:
        middle = (own + overall) / 2
        divergence = _entropy(middle) - (_entropy(own) + _entropy(overall[None])) / 2
        return np.sqrt(np.maximum(divergence / np.log(2), 0))

    return _by_client(counts, distance)


def effective_classes(counts: np.ndarray) -> np.ndarray:
    """(C, K) class counts to (C,) float64: exp(entropy of the mix), from 1 to K; NaN for a client without samples.

    A client with equal shares of n classes has n (Hill 1973, diversity of order 1).
    """
    return _by_client(counts, lambda own: np.exp(_entropy(own)))


def gini(sizes: np.ndarray) -> float:
    """Gini coefficient of (C,) sizes: 0 where all are equal, (C - 1) / C where one client has everything.

    It is the mean absolute difference of two clients drawn with replacement, over twice the mean size.
    """
    ascending = np.sort(sizes).astype(np.float64)
    number = len(ascending)
    weights = 2 * np.arange(1, number + 1) - number - 1
    return float((weights * ascending).sum() / (number * ascending.sum()))


def _overall(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(0)
    return total / total.sum()


def _entropy(mixes: np.ndarray) -> np.ndarray:
    """(n, K) to (n,) in nats, where 0 log 0 = 0."""
    return -(mixes * np.log(np.where(mixes > 0, mixes, 1))).sum(1)


def _by_client(counts: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`measure` of the mixes (n, K) of the clients with samples, NaN for the others."""
    result = np.full(len(counts), np.nan)
    for start in range(0, len(counts), _CHUNK):
        part = counts[start : start + _CHUNK]
        sizes = part.sum(1)
        some = sizes > 0
        result[start : start + _CHUNK][some] = measure(part[some] / sizes[some, None])
    return result
