"""A class mix for each client, at fixed sizes.

Every client i draws a mix q_i ~ Dir(alpha) over the classes and fills its fixed size from it, as in the experiments of
Acar et al., Federated learning based on dynamic regularization (FedDyn), ICLR 2021, and of Hsu, Qi, Brown, Measuring
the effects of non-identical data distribution for federated visual classification, 2019. Their programs draw sample by
sample, and draw again where a class has run out, which takes minutes for a small alpha. Here all clients draw at once:
a client asks for Multinomial(size, q_i); where a class is asked for more often than it has samples, the askers who get
one are a uniform draw, and the others ask again among the classes that are left. Each turn exhausts a class or ends, so
there are at most K turns.
"""

from collections.abc import Sequence

import numpy as np

from fedsim.data.deal.base import Deal, check_labels, gather, shuffled_by_class
from fedsim.data.deal.sizes import SizeLaw, client_sizes


def dirichlet_sized(
    targets: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    sizes: Sequence[int] | SizeLaw | None = None,
) -> Deal:
    """Clients of given sizes, each with class proportions of its own.

    The mixes are drawn over the classes that occur. Memory: a few float64 for each client and class.

    Args:
        targets: (N,) integer class labels.
        num_clients: at most N.
        rng: source of all randomness.
        alpha: concentration; small values give each client few classes, large ones approach `iid`.
        sizes: None for sizes that differ by at most one; else as in `fedsim.data.deal.sizes.client_sizes`.

    Raises:
        ValueError: the targets are no class labels, or the sizes do not fit.
    """
    check_labels("dirichlet_sized", targets)
    need, facts = client_sizes(sizes, len(targets), num_clients, rng, recipe="dirichlet_sized")
    class_sizes = np.bincount(targets)
    present = np.flatnonzero(class_sizes)
    counts = np.zeros((len(class_sizes), num_clients + 1), dtype=np.int64)
    logits = _log_gammas(alpha, (num_clients, len(present)), rng)
    supply = class_sizes[present]
    askers = np.flatnonzero(need)
    need = need.copy()
    while len(askers):
        left = np.flatnonzero(supply)
        asked = rng.multinomial(need[askers], _softmax(logits[np.ix_(askers, left)]))
        for column, kind in enumerate(left.tolist()):
            got = asked[:, column]
            if got.sum() > supply[kind]:
                got = rng.multivariate_hypergeometric(got, supply[kind], method="marginals")
            counts[present[kind], askers] += got
            supply[kind] -= got.sum()
            need[askers] -= got
        askers = np.flatnonzero(need)
    counts[present, num_clients] = supply  # nobody's: only where given sizes ask for less than all
    by_class = shuffled_by_class(targets, rng)
    owners = np.empty(len(targets), dtype=np.min_scalar_type(num_clients))
    owners[by_class] = np.repeat(np.tile(np.arange(num_clients + 1), len(class_sizes)), counts.reshape(-1))
    return gather(owners, num_clients, rng, facts)


def _log_gammas(alpha: float, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(C, K) float64: logarithms of draws from Gamma(alpha), which normalised in a row are one from Dir(alpha).

    Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha) (Marsaglia and Tsang 2000). In logarithms nothing underflows, however
    small alpha is, so a client's order of preference among the classes is there even where it has drawn only one.
    """
    concentration = float(np.clip(alpha, 1e-100, 1e100))
    gammas = np.log(rng.standard_gamma(concentration + 1, shape))
    return gammas - rng.standard_exponential(shape) / concentration


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of (C, K) float64 that add up to 1."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
