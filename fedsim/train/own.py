"""Clients' own models, for evaluation: what each would use, made from the global model and from what it keeps."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.data.resident import ResidentSplit
from fedsim.denormals import flushed_denormals
from fedsim.rng import forked_generators, torch_stream
from fedsim.train.hooked import ClientMemory, HookedSlots
from fedsim.train.plan import make_plan
from fedsim.train.precision import products
from fedsim.train.rows import SerialGradient
from fedsim.train.seats import Seats
from fedsim.train.step import is_stochastic
from fedsim.train.training import Training


def own_models(
    training: Training, memory: ClientMemory, clients: Iterable[int], *, broadcast: Tensor, round: int
) -> Iterator[tuple[int, Tensor]]:
    """Each client with its own model (P + Q,), which is valid until the next one; nothing that is kept changes.

    Steps are taken in float32, whatever `trainer.precision` says.

    A client without training samples has nothing to learn from, and uses the global model with what it keeps.

    Args:
        training: of the run; its model is overwritten.
        memory: what the clients keep.
        clients: whose.
        broadcast: (P + Q + ...,) the global model and the server's vectors.
        round: the last finished round.
    """
    dataset, model, algorithm, seed = training.dataset, training.model, training.algorithm, training.seed
    record = algorithm.own or Algorithm(name=algorithm.name)
    model.own()
    data = ResidentSplit(dataset, dataset.train, model.device)
    num_steps = algorithm.own_steps
    local = replace(training.local.at(round + 1), num_steps=num_steps or None, straggler_share=0.0)
    sizes, stochastic = dataset.train.sizes, is_stochastic(model, dataset)
    for client in clients:
        # the first minibatches of the next round; a client without samples borrows the plan of one that has some
        planned = client if sizes[client] else int(sizes.argmax())
        plan = make_plan(
            dataset.train, np.array([planned]), local, seed=seed, round=round + 1, prelude=num_steps is None
        )
        plan = replace(plan, clients=np.array([client]))
        slots = HookedSlots(
            model,
            record,
            algorithm,
            memory,
            local,
            SerialGradient(model, dataset.objective),
            rows=model.vector.view(1, -1),
            broadcast=broadcast,
            plan=plan,
        )
        slots.begin(Seats(plan, np.arange(1), np.ones(1), model.device).some(0, 1))
        if num_steps != 0 and sizes[client]:
            model.module.train()
            with flushed_denormals(), products("float32", model.device), forked_generators(stochastic) as reseed:
                if stochastic:
                    reseed(torch_stream(seed, "dropout", plan.round, client).initial_seed())
                counts = plan.counts[:, 0].tolist()
                minibatches = data.gather_all(
                    data.rows(rows[:count]) for rows, count in zip(plan.rows[:, 0], counts, strict=True)
                )
                for (x, y), count in zip(minibatches, counts, strict=True):
                    number = torch.tensor([count])
                    slots.advance(1, x[None], y[None], number, number.to(model.device))
            yield client, slots.own()
        else:
            yield client, model.vector
