"""IFCA: Ghosh et al. 2020, "An Efficient Framework for Clustered Federated Learning", Algorithm 1 with model averaging.

There are M models. In each round a client takes the one with the least loss on its training samples, trains it, and the
server averages each model over the clients that took it, weighted by samples. Choosing takes a pass over the cohort's
samples before the round. The first model is the run's global one; the others are drawn as it was.
"""

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Kept, Round, ServerState, Setup


def ifca(num_clusters: int = 2) -> Algorithm:
    """A model a cluster, and clients that find theirs.

    Args:
        num_clusters: M; 1 is FedAvg.
    """
    if num_clusters < 1:
        raise ValueError(f"algorithm.num_clusters must be at least 1, got {num_clusters}")
    names = [f"centre_{m}" for m in range(1, num_clusters)]

    def centres(clients: Clients) -> Tensor:
        """(M, P + Q)"""
        first = torch.cat([clients.start, clients.start_buffers])
        return torch.stack([first, *(clients.server[name] for name in names)])

    def survey(clients: Clients) -> None:
        losses = [clients.loss(centre) for centre in centres(clients)]
        clients.vectors["losses"].add_(torch.cat(losses, dim=1) * clients.counts)

    def chosen(clients: Clients) -> Tensor:
        """(K,)"""
        return clients.vectors["losses"].argmin(1)

    def choose(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        clients.vectors["choice"].copy_(_one_hot(chosen(clients), num_clusters))
        return {}

    def start(clients: Clients, centre: Tensor) -> None:
        size = clients.model.shape[1]
        clients.model.copy_(centre[:, :size])
        clients.buffers.copy_(centre[:, size:])

    def begin(clients: Clients) -> None:
        start(clients, centres(clients)[clients.vectors["choice"].argmax(1)])

    def use_chosen(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        start(clients, centres(clients)[chosen(clients)])
        return {}

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        choice = clients.vectors["choice"]
        moved = torch.cat([clients.model, clients.buffers], dim=1) - centres(clients)[choice.argmax(1)]
        update.copy_(moved * choice[:, :1])
        return {"chosen": choice, **{name: moved * choice[:, m : m + 1] for m, name in enumerate(names, start=1)}}

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        return {name: setup.draw(m) for m, name in enumerate(names, start=1)}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        shares = round.sums["chosen"]
        shares = torch.where(shares > 0, shares, 1.0)  # nobody has moved a model that nobody took
        vector.add_((mean / shares[0]).to(vector.dtype))
        return {
            name: state[name] + (round.sums[name] / shares[m]).to(vector.dtype) for m, name in enumerate(names, start=1)
        }

    losses = {"losses": num_clusters}
    return Algorithm(
        name="ifca",
        begin=begin,
        finish=finish,
        keeps={"choice": Kept(size=num_clusters)},
        sums={"chosen": num_clusters, **dict.fromkeys(names, "model")},
        broadcast=dict.fromkeys(names, "model"),
        prelude=Algorithm(name="ifca_survey", step=survey, finish=choose, works=losses),
        own=Algorithm(name="ifca_own", step=survey, finish=use_chosen, works=losses),
        own_steps=None,
        server_init=server_init,
        server_step=server_step,
    )


def _one_hot(index: Tensor, number: int) -> Tensor:
    return torch.nn.functional.one_hot(index, number)
