"""Who trains in a round: functions of (seed, round), so that a resumed run draws the same cohorts.

A sampler is made by a factory (population, clients_per_round, **options), which an option of `conf/sampler/` names.
Power-of-choice: Cho et al. 2020, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice
Selection Strategies", section 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.rng import counter_hash, stream

Sampler = Callable[[int, int], np.ndarray]
"""(seed, round) -> the cohort: (m,) int64 client indices, sorted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """What a sampler may know of the clients.

    Attributes:
        sizes: (C,) int64 training samples of each client.
        losses: clients (n,) -> (n,) float64 mean loss of the current global model on each one's training samples.
            None where nobody can tell.
        there: round -> (n,) int64, sorted: the clients whose devices can start in it. None without devices.
    """

    sizes: np.ndarray
    losses: Callable[[np.ndarray], np.ndarray] | None = None
    there: Callable[[int], np.ndarray] | None = None

    @property
    def num_clients(self) -> int:
        """C."""
        return len(self.sizes)


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomSampler:
    """A sampler whose law is known, for those who count privacy.

    Attributes:
        draw: (seed, round) -> cohort.
        scheme: "without_replacement" (m of C, all sets alike) or "poisson" (each client by itself).
        cohort_size: clients a round; under "poisson" their expectation.
    """

    draw: Sampler
    scheme: str
    cohort_size: float

    def __call__(self, seed: int, round: int) -> np.ndarray:
        return self.draw(seed, round)


def cohort_size(clients_per_round: int | float, num_clients: int) -> int:
    """Clients a round from a count (an int) or a fraction (a float up to 1.0, rounded, at least one client).

    Raises:
        ValueError: outside 1 ... num_clients.
    """
    if isinstance(clients_per_round, float):
        if not 0 < clients_per_round <= 1:
            raise ValueError(
                f"server.clients_per_round={clients_per_round}: a fraction must be in (0, 1], a count an integer"
            )
        return max(1, round(clients_per_round * num_clients))
    if not 1 <= clients_per_round <= num_clients:
        raise ValueError(
            f"server.clients_per_round={clients_per_round}, but there are {num_clients} clients: "
            f"choose 1 to {num_clients}, or a fraction such as 0.1"
        )
    return clients_per_round


def uniform(population: Population, clients_per_round: int | float) -> RandomSampler:
    """Uniform without replacement (McMahan et al. 2017, Algorithm 1): a count, or a fixed fraction of the clients."""
    num_clients = population.num_clients
    size = cohort_size(clients_per_round, num_clients)

    def sample(seed: int, round: int) -> np.ndarray:
        return np.sort(stream(seed, "cohort", round).choice(num_clients, size, replace=False, shuffle=False))

    return RandomSampler(draw=sample, scheme="without_replacement", cohort_size=size)


def poisson(population: Population, clients_per_round: int | float) -> RandomSampler:
    """Every client takes part with the same probability, each by itself, so that the size of the cohort varies.

    Args:
        population: the clients.
        clients_per_round: expected number, or the probability itself (a float).
    """
    num_clients = population.num_clients
    if not isinstance(clients_per_round, float):
        clients_per_round = cohort_size(clients_per_round, num_clients) / num_clients
    if not 0 < clients_per_round <= 1:
        raise ValueError(f"server.clients_per_round={clients_per_round}: a probability must be in (0, 1]")
    probability = clients_per_round

    def sample(seed: int, round: int) -> np.ndarray:
        rng = stream(seed, "cohort", round)
        return np.sort(rng.choice(num_clients, rng.binomial(num_clients, probability), replace=False, shuffle=False))

    return RandomSampler(draw=sample, scheme="poisson", cohort_size=probability * num_clients)


def weighted(population: Population, clients_per_round: int | float) -> Sampler:
    """Without replacement, one after another, each with a chance proportional to its training samples."""
    size, sizes = cohort_size(clients_per_round, population.num_clients), population.sizes
    _enough(sizes, size, "sampler=weighted")

    def sample(seed: int, round: int) -> np.ndarray:
        return _weighted(stream(seed, "cohort", round), sizes, size)

    return sample


def power_of_choice(
    population: Population, clients_per_round: int | float, num_candidates: int | None = None
) -> Sampler:
    """Of d candidates, drawn with chances proportional to their samples, those with the highest loss take part.

    Args:
        population: the clients; it must be able to tell their losses.
        clients_per_round: m.
        num_candidates: d, at least m; None: 2 m, or all clients if those are fewer.
    """
    size, sizes = cohort_size(clients_per_round, population.num_clients), population.sizes
    candidates = min(2 * size, int((sizes > 0).sum())) if num_candidates is None else num_candidates
    if candidates < size:
        raise ValueError(f"sampler.num_candidates={candidates} must be at least the {size} clients of a round")
    _enough(sizes, candidates, "sampler=power_of_choice")
    losses = population.losses
    if losses is None:
        raise ValueError("sampler=power_of_choice needs a population that can tell the clients' losses")

    def sample(seed: int, round: int) -> np.ndarray:
        drawn = _weighted(stream(seed, "cohort", round), sizes, candidates)
        highest = np.argsort(-losses(drawn), kind="stable")[:size]
        return np.sort(drawn[highest])

    return sample


def round_robin(population: Population, clients_per_round: int | float) -> Sampler:
    """Clients in turn, by number, going on where the round before stopped."""
    num_clients = population.num_clients
    size = cohort_size(clients_per_round, num_clients)

    def sample(seed: int, round: int) -> np.ndarray:
        return np.sort(((round - 1) * size + np.arange(size)) % num_clients)

    return sample


def available(
    population: Population,
    clients_per_round: int | float,
    mean: float = 0.5,
    amplitude: float = 0.4,
    period: int = 24,
) -> Sampler:
    """Uniform among the clients that are there, and these come and go with the time of their day: for runs without
    devices, which have an availability of their own (`present`).

    In round t client c is there with probability mean + amplitude sin(2 pi (t / period + phase_c)), where the phase is
    the client's own, uniform. If fewer are there than are asked for, all of them take part.

    Args:
        population, clients_per_round: the clients, and how many of those that are there.
        mean, amplitude: of the probability, which must stay in [0, 1].
        period: rounds of a day.

    Raises:
        ValueError: there are devices; or, in a round, nobody is there.
    """
    num_clients = population.num_clients
    size = cohort_size(clients_per_round, num_clients)
    if population.there is not None:
        raise ValueError(
            "sampler=available and the devices would disagree on who is there; use sampler=present, which asks the "
            "devices, or devices=none"
        )
    if mean < abs(amplitude) or mean + abs(amplitude) > 1:
        raise ValueError(
            f"sampler.mean={mean} and sampler.amplitude={amplitude}: mean - amplitude and mean + amplitude must be in "
            "[0, 1], for they are probabilities"
        )
    if period < 1:
        raise ValueError(f"sampler.period must be at least 1, got {period}")
    clients = np.arange(num_clients)

    def sample(seed: int, round: int) -> np.ndarray:
        phase = _unit(counter_hash(seed, "phase", clients))
        chance = mean + amplitude * np.sin(2 * np.pi * (round / period + phase))
        there = clients[_unit(counter_hash(seed, "available", round, clients)) < chance]
        return _some_of(there, size, seed, round, "raise sampler.mean")

    return sample


def present(population: Population, clients_per_round: int | float) -> Sampler:
    """Uniform among the clients with samples whose devices can start in this round (`Devices.available`), so that all
    who are asked do start. If fewer are there than are asked for, all of them take part.

    Raises:
        ValueError: there are no devices; or, in a round, nobody is there.
    """
    size, who = cohort_size(clients_per_round, population.num_clients), population.there
    if who is None:
        raise ValueError("sampler=present asks the devices who is there: set devices, or use sampler=available")

    def sample(seed: int, round: int) -> np.ndarray:
        there = who(round)
        return _some_of(there[population.sizes[there] > 0], size, seed, round, "raise devices.availability")

    return sample


def fixed(population: Population, clients_per_round: int | float, cohorts: Sequence[Sequence[int]] = ()) -> Sampler:
    """The cohorts of a list, round after round, from the start again when it ends.

    Args:
        population: the clients.
        clients_per_round: not used: the list says.
        cohorts: client numbers of each round.
    """
    if not cohorts:
        raise ValueError("sampler=fixed needs sampler.cohorts, for example [[0,1],[2,3]]: client numbers of each round")
    rounds = [np.unique(np.asarray(cohort, np.int64)) for cohort in cohorts]
    for given, clients in zip(cohorts, rounds, strict=True):
        if len(clients) == 0 or len(clients) < len(given):
            raise ValueError(f"sampler.cohorts: {list(given)} is empty or names a client twice")
        if clients[0] < 0 or clients[-1] >= population.num_clients:
            raise ValueError(f"sampler.cohorts: clients are 0 to {population.num_clients - 1}, got {list(given)}")

    def sample(seed: int, round: int) -> np.ndarray:
        return rounds[(round - 1) % len(rounds)]

    return sample


def checked(cohort: object, num_clients: int) -> np.ndarray:
    """(m,) the cohort that a sampler has given.

    Raises:
        ValueError: it is not the numbers of m different clients.
    """
    found = np.asarray(cohort)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and len(found)):
        what = f"{type(cohort).__name__} of {found.dtype} and shape {found.shape}"
        raise ValueError(f"a sampler must give the numbers of clients as (m,) integers; it gave {what}")
    if len(found) and (found.min() < 0 or found.max() >= num_clients or len(np.unique(found)) < len(found)):
        raise ValueError(
            f"a sampler must give numbers of different clients from 0 to {num_clients - 1}; it gave {found[:8]} ..."
        )
    return found.astype(np.int64, copy=False)


def _some_of(there: np.ndarray, size: int, seed: int, round: int, remedy: str) -> np.ndarray:
    """At most `size` of the clients that are there, uniformly, sorted."""
    if len(there) == 0:
        raise ValueError(f"round {round}: no client is available; {remedy} or take more clients")
    chosen = stream(seed, "cohort", round).choice(len(there), min(size, len(there)), replace=False, shuffle=False)
    return np.sort(there[chosen])


def _weighted(rng: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """`count` distinct sorted clients with chances proportional to `sizes`."""
    return np.sort(rng.choice(len(sizes), count, replace=False, p=sizes / sizes.sum(), shuffle=False))


def _enough(sizes: np.ndarray, count: int, who: str) -> None:
    if (some := int((sizes > 0).sum())) < count:
        raise ValueError(f"{who} is to draw {count} clients, but only {some} have samples: ask for fewer")


def _unit(hashes: np.ndarray) -> np.ndarray:
    """uint64 to float64 in [0, 1)."""
    return (hashes >> np.uint64(11)) * 2.0**-53
