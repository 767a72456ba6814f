"""What momentum makes of a client's gradients: its update is -eta sum_j a_j g_j, and ||a||_1 counts as its steps.

Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", section 4.1.
"""

from torch import Tensor

from fedsim.config import LocalConfig


def count_step(steps: Tensor, momentum: Tensor, local: LocalConfig, decay: float = 0.0) -> None:
    """Add a step of SGD to ||a||_1, which is what the local rule makes of gradients that are all 1; in place.

    Args:
        steps: (K, 1) ||a||_1 so far, zeros at first; without momentum and decay the number of steps.
        momentum: (K, 1) of the same rule, zeros at first.
        local: momentum, Nesterov's or not, and the learning rate.
        decay: a pull towards the start, of weight decay and of a proximal term, that shortens earlier steps.
    """
    one = 1 - local.learning_rate * decay * steps
    momentum.mul_(local.momentum).add_(one)
    steps.add_(one + local.momentum * momentum if local.nesterov else momentum)
