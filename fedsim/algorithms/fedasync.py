"""FedAsync: Xie et al. 2019, "Asynchronous Federated Optimization", Algorithm 1.

The server mixes each client's model into its own as it arrives: w <- (1 - a_t) w + a_t w_client, a_t = a s(t - tau),
where the client started from version tau. A round is the arrival of one client.
"""

from dataclasses import replace

from fedsim.algorithms.asynchronous import Asynchronous, staleness_function
from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.fedprox import fedprox


def fedasync(
    mixing: float = 0.6,
    staleness: str = "polynomial",
    exponent: float = 0.5,
    slope: float = 10.0,
    delay: float = 4.0,
    proximal_weight: float = 0.0,
) -> Algorithm:
    """FedAsync.

    Args:
        mixing: a, in (0, 1].
        staleness: "constant", "polynomial" or "hinge".
        exponent: of "polynomial".
        slope, delay: of "hinge".
        proximal_weight: rho of the paper, which keeps a client near the model that it started from.
    """
    if not 0 < mixing <= 1:
        raise ValueError(f"algorithm.mixing must be in (0, 1], got {mixing}")
    how = Asynchronous(
        buffer_size=1,
        staleness=staleness_function(staleness, exponent=exponent, slope=slope, delay=delay),
        mixing=mixing,
    )
    if proximal_weight:
        return replace(fedprox(proximal_weight), name="fedasync", asynchronous=how)
    return Algorithm(name="fedasync", asynchronous=how)
