"""fedsim, by the trainer that the way names (serial, vectorized-K, auto), and `limit`, which knows no client.

Memory above the start counts what the simulation itself holds and the trials of `auto`; its seconds do not, as those
of other systems' starts do not.
"""

from dataclasses import replace

import numpy as np
import torch
from engine import SEED, simulation
from limit import limit
from peers.common import Rounds, Work, load, values
from workloads import initial_model, pack

from fedsim import __version__
from fedsim.config import LocalConfig
from fedsim.data.federated import FederatedDataset
from fedsim.train.plan import make_plan


def unshuffled(dataset: FederatedDataset, work: Work) -> tuple[FederatedDataset, np.ndarray]:
    """The dataset and cohorts with which fedsim visits each client's samples in their order, for it always shuffles.

    Each client of each round is a client of its own, whose samples lie where the shuffle of that round looks for them.
    """
    members = [dataset.train.rows(client) for client in work.cohorts.reshape(-1)]
    offsets = np.append(0, np.cumsum([len(rows) for rows in members]))
    cohorts = np.arange(len(members)).reshape(work.cohorts.shape)
    order = np.empty(offsets[-1], np.int64)
    split = replace(dataset.train, offsets=offsets)
    for round, cohort in enumerate(cohorts, start=1):
        plan = make_plan(split, cohort, LocalConfig(batch_size=work.batch), seed=SEED, round=round)
        visited = plan.rows[:, 0][np.arange(work.batch) < plan.counts]  # client after client, one slot
        order[visited] = np.concatenate([members[client] for client in plan.clients])
    names = [str(i) for i in range(len(members))]
    return replace(dataset, train=replace(split, order=order), client_ids=names), cohorts


def main() -> None:
    work = load()
    torch.set_num_threads(work.threads)
    dataset = pack(work.name, work.inputs, work.targets, work.offsets)
    net, rounds = initial_model(work.name, dataset), Rounds()
    rounds.ready()
    if work.way == "limit":
        rounds.seconds = limit(dataset.train, net, work.cohorts, work.rate)
        rounds.finish(work, values(net), version=torch.__version__)
        return
    if work.shuffle:
        cohorts = work.cohorts
    else:
        dataset, cohorts = unshuffled(dataset, work)
    simulated = simulation(work.way, dataset, net, cohorts, work.rate)
    for _ in cohorts:
        rounds.resume()
        simulated.server.run_round()
        rounds.done()
    state = simulated.model.state_dict(simulated.server.vector)
    parameters = [state[name].numpy() for name, _ in net.named_parameters()]
    choice = (
        {} if simulated.choice is None else {"choice": simulated.choice.reason, "slots": simulated.choice.num_slots}
    )
    rounds.finish(work, parameters, version=f"{__version__}, torch {torch.__version__}", **choice)


if __name__ == "__main__":
    main()
