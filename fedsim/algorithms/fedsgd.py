"""FedSGD: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", section 2.

Each client takes one step along the gradient of all of its samples. The gradient is summed over minibatches at a model
that does not move, so `local.batch_size` bounds memory and changes nothing else (BatchNorm's statistics apart).
"""

from fedsim.algorithms.base import Algorithm, Clients


def fedsgd() -> Algorithm:
    """One full-batch step a client; further epochs visit the same samples again and change nothing."""

    def step(clients: Clients) -> None:
        gradient, seen = clients.vectors["gradient"], clients.vectors["seen"]
        gradient += clients.counts * clients.gradient()
        seen += clients.counts
        clients.descend(gradient / seen, only=clients.taken + 1 >= clients.steps)

    return Algorithm(name="fedsgd", step=step, works={"gradient": "parameters", "seen": 1})
