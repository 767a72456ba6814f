"""The parts of a run that depend on one another: what does not fit, the way of updates, and the server."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.nn import functional

from fedsim.algorithms import Algorithm
from fedsim.algorithms.base import Kept, equal_weights, update_size
from fedsim.algorithms.traffic import traffic
from fedsim.arrivals import make_arrivals
from fedsim.async_server import AsyncServer
from fedsim.attacks import Attack
from fedsim.clock import make_clock
from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.devices import Devices
from fedsim.robust import Aggregator
from fedsim.sampling import Population, Sampler, power_of_choice, uniform, weighted
from fedsim.server import Server
from fedsim.transforms import Transform
from fedsim.transport.base import Transport
from fedsim.uplink import Uplink
from fedsim.vector import FlatModel, Layout

log = logging.getLogger("fedsim")


def refuse_kinds(algorithm: object, local: object, server: object, aggregator: object, transforms: object) -> None:
    """Refuse parts of a run that are something else, such as a factory in the place of what it makes.

    Raises:
        ValueError: says what is expected.
    """
    expected = [
        ("algorithm", algorithm, Algorithm, "fedprox(0.1)"),
        ("local", local, LocalConfig, "LocalConfig(learning_rate=0.1)"),
        ("server", server, ServerConfig, "ServerConfig(num_rounds=100)"),
        ("transforms", transforms, Sequence, "[clip(1.0)]"),
    ]
    expected += [] if aggregator is None else [("aggregator", aggregator, Aggregator, "median()")]
    if isinstance(transforms, Sequence):
        expected += [("transforms", transform, Transform, "[clip(1.0)]") for transform in transforms]
    if isinstance(algorithm, Algorithm):
        expected += [
            (f"keeps[{name!r}]", kept, Kept, "Kept(size='parameters')") for name, kept in algorithm.keeps.items()
        ]
    for name, value, kind, example in expected:
        if not isinstance(value, kind):
            given = repr(value) if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
            raise ValueError(f"{name} must be {kind.__name__}, for example {name}={example}; got {given}")


def refuse_misfits(
    algorithm: Algorithm,
    server: ServerConfig,
    sampler: Callable[[Population, int | float], Sampler],
    *,
    elsewhere: bool,
    timed: bool,
) -> None:
    """Refuse what the algorithm, or groups, or other processes (`elsewhere`), or devices (`timed`) cannot do.

    Raises:
        ValueError: says what.
    """
    if server.group_rounds > 1 and (
        algorithm.keeps
        or algorithm.broadcast
        or algorithm.sums
        or algorithm.prelude
        or algorithm.weights
        or algorithm.asynchronous
    ):
        raise ValueError(
            f"server.group_rounds={server.group_rounds} needs an algorithm of rounds whose clients send their update "
            f"and nothing else; {algorithm.name} does more: set group_rounds=1"
        )
    constant = server.schedule.kind == "constant" and not server.schedule.warmup_rounds
    if "model" in algorithm.broadcast.values() and not constant:
        raise ValueError(
            f"server.schedule scales the steps of one global model, and algorithm={algorithm.name} has several: leave "
            "it out, or use local.schedule"
        )
    if timed and server.group_rounds > 1:
        raise ValueError(
            "devices say how long a client takes for its one round, and a client of a group has several: set "
            "server.group_rounds=1, or devices=none"
        )
    if server.arrivals is not None and algorithm.asynchronous is None:
        raise ValueError(
            f"server.arrivals is an order of updates, which the rounds of {algorithm.name} do not have: leave it out, "
            "or set algorithm=fedasync or algorithm=fedbuff"
        )
    if timed and algorithm.asynchronous is not None and (elsewhere or server.arrivals is not None):
        real = "server.arrivals" if server.arrivals is not None else "transport=torch_distributed"
        raise ValueError(
            f"devices say when updates arrive in virtual time, and {real} when they really do: set devices=none"
        )
    if algorithm.asynchronous is not None and getattr(sampler, "func", sampler) is not uniform:
        raise ValueError(f"algorithm={algorithm.name} draws clients as places fall free: set sampler=uniform")


def poisoned(dataset: FederatedDataset, attack: Attack | None, seed: int) -> FederatedDataset:
    """The data as the attackers have left them."""
    if attack is None or attack.poison is None:
        return dataset
    return attack.poison(dataset, attack.attackers(dataset.num_clients, seed))


def make_uplink(
    model: FlatModel,
    algorithm: Algorithm,
    server: ServerConfig,
    sampler: Sampler,
    num_clients: int,
    aggregator: Aggregator,
    transforms: Sequence[Transform],
    attack: Attack | None,
    seed: int,
) -> Uplink | None:
    """The uplink of a run; None: updates are averaged, and no more.

    Raises:
        ValueError: parts that do not fit each other.
    """
    if aggregator.plain and not transforms and attack is None:
        return None
    if algorithm.prelude is not None or algorithm.asynchronous is not None:
        raise ValueError(
            f"algorithm={algorithm.name} does not send one message a round, for which transforms, attacks and "
            "aggregators are made: choose another algorithm, or aggregator=mean without the others"
        )
    if server.group_rounds > 1:
        raise ValueError(
            f"server.group_rounds={server.group_rounds}: a group sends one update for all of its clients, where "
            "transforms, attacks and aggregators other than the mean need each client's: set group_rounds=1"
        )
    if algorithm.weights not in (None, equal_weights) and not aggregator.plain:
        raise ValueError(
            f"algorithm={algorithm.name} weighs clients itself, where aggregator={aggregator.name} has its own way: "
            "choose another algorithm, or aggregator=mean with aggregator.equal_weights=false"
        )
    size = update_size(algorithm, model.layout)
    personal = None if algorithm.personal is None else algorithm.personal(model)
    layout = model.layout if personal is None else model.layout.without(personal)
    if layout.size == 0 and (transforms or aggregator.rule is not None or (attack and attack.collude)):
        raise ValueError(
            f"algorithm={algorithm.name} sends nothing that could be changed or compared: leave transforms, attack and "
            "aggregator out, or choose another algorithm"
        )
    _refuse_statistics(layout, transforms)
    uplink = Uplink(
        transforms=[t if t.fit is None else t.fit(layout) for t in transforms],
        aggregator=aggregator,
        attack=attack,
        sampler=sampler,
        num_clients=num_clients,
        size=size,
        personal=None if personal is None else functional.pad(personal, (0, size - len(personal))),
        like=model.vector.new_empty(0),
        seed=seed,
    )
    if uplink.private and algorithm.weights not in (None, equal_weights):
        raise ValueError(
            f"algorithm={algorithm.name} weighs clients itself, where privacy has all of them count the same: choose "
            "another algorithm, or leave the noise out"
        )
    if uplink.private and server.over_selection > 1:
        raise ValueError(
            "server.over_selection: who counts depends on how fast the others are, so that one client changes more "
            "than its own update and no epsilon is known: set server.over_selection=1, or leave the noise out"
        )
    _refuse_numbers(algorithm, aggregator, transforms)
    return uplink


def _refuse_numbers(algorithm: Algorithm, aggregator: Aggregator, transforms: Sequence[Transform]) -> None:
    """Refuse numbers beside the update, such as FedNova's steps, where they would be changed or measured with it."""
    numbers = [name for name, size in algorithm.sums.items() if isinstance(size, int)]
    if not numbers:
        return
    beside = f"algorithm={algorithm.name} sends numbers beside the update ({', '.join(numbers)})"
    changing = [t.name for t in transforms if t.apply is not None or t.finish is not None or t.fit is not None]
    if changing:
        raise ValueError(
            f"{beside}, which transforms=[{','.join(changing)}] would change like parameters: leave the transforms "
            "out, or choose another algorithm"
        )
    if aggregator.rule is not None and not aggregator.by_element:
        raise ValueError(
            f"{beside}, which count as little in distances as a parameter does: choose median, trimmed_mean or mean in "
            f"the place of aggregator={aggregator.name}, or another algorithm"
        )


def _refuse_statistics(layout: Layout, transforms: Sequence[Transform]) -> None:
    """Refuse running statistics where a variance may become negative, of which evaluation makes NaN."""
    scattering = [t.name for t in transforms if t.scatters]
    sent = [e.name for e in layout.buffers if e.stop > e.start]
    if scattering and sent:
        raise ValueError(
            f"transforms=[{','.join(scattering)}] may make a running variance negative, and the model sends "
            f"{', '.join(sent[:2])}{' ...' if len(sent) > 2 else ''}: use a model with GroupNorm, or algorithm=fedbn, "
            "whose statistics stay with the clients"
        )


def tell_biases(algorithm: Algorithm, uplink: Uplink | None, sampler: Callable[..., Sampler]) -> None:
    """Warn of parts that work together, but to another end than each of them alone."""
    # what clients keep has a counterpart at the server, which moves with what arrives
    mirrored = algorithm.keeps and algorithm.server_init is not Algorithm.server_init
    if uplink is not None and mirrored:
        lossy = [f"transforms.{t.name}" for t in uplink.pipeline.transforms if not t.num_client_vectors]
        lossy += [] if uplink.aggregator.rule is None else [f"aggregator={uplink.aggregator.name}"]
        if lossy:
            log.warning(
                f"algorithm={algorithm.name}: clients keep what they did, and the server what came through "
                f"{', '.join(lossy)}, so that its corrections stay biased: use transforms with error feedback and "
                "aggregator=mean, or an algorithm that keeps no such state"
            )
    by_samples = algorithm.weights is None and (
        uplink is None or not (uplink.equal_weights or uplink.aggregator.rule is not None)
    )
    how = getattr(sampler, "func", sampler)
    if by_samples and how in (weighted, power_of_choice):
        log.warning(
            f"sampler={how.__name__} draws clients by their samples, and the mean weighs them by samples again: set "
            "aggregator.equal_weights=true, or sampler=uniform"
        )


def make_server(
    model: FlatModel,
    dataset: FederatedDataset,
    algorithm: Algorithm,
    local: LocalConfig,
    server: ServerConfig,
    *,
    sampler: Sampler,
    devices: Devices | None,
    transport: Transport,
    elsewhere: bool,
    uplink: Uplink | None,
    draw: Callable[[int], Tensor],
    settled: Callable[[], AbstractContextManager[None]],
    seed: int,
) -> Server | AsyncServer:
    """The server of a run, which begins with a copy of the model's vector.

    Args:
        model, dataset, algorithm, local, server: the run.
        sampler: who trains in a round; an asynchronous server has no use for it.
        devices: the clients' devices; None: nothing is known of them.
        transport: where rounds run.
        elsewhere: whether other processes train, once `transport` has been replaced by theirs.
        uplink: what happens to updates beside their mean.
        draw: i -> (P + Q,) another initial model.
        settled: what clients have written in it lasts if it ends well.
        seed: of the run.
    """
    sizes = dataset.train.sizes
    down, up = traffic(algorithm, model)
    if uplink is not None and uplink.pipeline.transforms:
        up = uplink.bytes_per_update
    timed: dict[str, Any] = {"download_bytes": down, "upload_bytes": up}
    common: dict[str, Any] = {
        "algorithm": algorithm,
        "transport": transport,
        "draw": draw,
        "schedule": server.schedule,
    }
    vector = model.vector.clone()
    if algorithm.asynchronous is not None:
        buffer_size = algorithm.asynchronous.buffer_size
        arrivals = make_arrivals(
            devices, sizes, local, server, num_updates=buffer_size, elsewhere=elsewhere, seed=seed, **timed
        )
        return AsyncServer(vector, model.num_parameters, sizes, arrivals=arrivals, **common)
    # privately nobody may come: where one client decides that all are asked again, it changes more than its own update
    repeats = uplink is None or not uplink.private
    prelude = algorithm.prelude is not None
    clock = make_clock(devices, sizes, local, server, prelude=prelude, repeats=repeats, seed=seed, **timed)
    return Server(
        vector,
        model.num_parameters,
        sizes,
        message_bytes=(down, up),
        sampler=sampler,
        seed=seed,
        clock=clock,
        uplink=uplink,
        settled=settled,
        **common,
    )
