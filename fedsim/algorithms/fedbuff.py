"""FedBuff: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", Algorithm 1.

The server steps along the mean of every `buffer_size` updates as they arrive, each scaled by 1 / sqrt(1 + s) for its
staleness s. The paper's mean counts clients alike; here they count by their samples, as FedAvg's do, unless `weighted`
is False. With a buffer of a whole cohort and equal devices it is FedAvg.
"""

import numpy as np
from torch import Tensor

from fedsim.algorithms.asynchronous import Asynchronous, staleness_function
from fedsim.algorithms.base import Algorithm, Round, ServerState


def fedbuff(
    buffer_size: int = 10,
    staleness_exponent: float = 0.5,
    server_learning_rate: float = 1.0,
    weighted: bool = True,
) -> Algorithm:
    """FedBuff.

    Args:
        buffer_size: K of the paper.
        staleness_exponent: an update is scaled by (1 + s)^-staleness_exponent; 0 does not look at staleness.
        server_learning_rate: eta_g.
        weighted: by samples; False: all clients alike.
    """
    if not server_learning_rate > 0:
        raise ValueError(f"algorithm.server_learning_rate must be positive, got {server_learning_rate}")

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        vector.add_(mean.to(vector.dtype), alpha=server_learning_rate)
        return state

    staleness = staleness_function("polynomial", exponent=staleness_exponent, slope=0.0, delay=0.0)
    how = Asynchronous(buffer_size=buffer_size, staleness=staleness)
    weights = None if weighted else lambda clients, samples, broadcast: np.ones(len(clients))
    return Algorithm(name="fedbuff", weights=weights, server_step=server_step, asynchronous=how)
