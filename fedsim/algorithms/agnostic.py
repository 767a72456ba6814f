"""AgnosticFedAvg: Ro et al. 2021, "Communication-Efficient Agnostic Federated Averaging", Algorithm 1, after Mohri,
Sivek and Suresh 2019, "Agnostic Federated Learning".

Clients belong to domains. Domain d has a weight lambda_d, and a client of it weighs lambda_d n_k / N_d in the average,
with N_d the domain's share of the samples in recent rounds. The server raises the weights of domains with large losses:
lambda_d <- lambda_d exp(gamma L_d), normalised, where L_d is the mean loss of the domain's sampled clients at the
global model, and 0 without any. Departures: a client lies in one domain (the paper's clients may have samples of
several), N_d is a share of the cohort, not a count, which changes no ratio, and lambda_d stays above 1e-6
of the domain's share of all samples, so that large losses do not silence a domain for good.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Round, ServerState, Setup

_LEAST_WEIGHT = 1e-6


def agnostic_fedavg(
    domains: Sequence[int] | None = None,
    num_domains: int = 10,
    domain_learning_rate: float = 0.1,
    window: int = 1,
) -> Algorithm:
    """FedAvg for the worst mixture of domains.

    Args:
        domains: the domain of each client, from 0; None: client c belongs to domain c modulo `num_domains`.
        num_domains: D, if `domains` is None.
        domain_learning_rate: gamma; 0 keeps every lambda at the domain's share of all samples.
        window: rounds over which N_d is averaged.
    """
    given = None if domains is None else np.asarray(domains, np.int64)
    if given is not None and (len(given) == 0 or given.min() < 0):
        raise ValueError("algorithm.domains must hold a number from 0 on for each client")
    number = num_domains if given is None else int(given.max()) + 1
    if number < 1 or window < 1:
        raise ValueError("algorithm.num_domains and algorithm.window must be at least 1")
    if not domain_learning_rate >= 0:
        raise ValueError(f"algorithm.domain_learning_rate must not be negative, got {domain_learning_rate}")

    def domain(clients: np.ndarray) -> np.ndarray:
        return clients % number if given is None else given[clients]

    def weights(clients: np.ndarray, samples: np.ndarray, server: Mapping[str, Tensor]) -> np.ndarray:
        return server["scale"].double().cpu().numpy()[domain(clients)] * samples

    def step(clients: Clients) -> None:
        clients.descend(clients.gradient())
        seen, loss = clients.vectors["seen"], clients.vectors["loss"]
        counts = clients.counts * (seen < clients.samples)
        loss.add_(counts * clients.loss(clients.start))
        seen.add_(counts)

    def finish(clients: Clients, update: Tensor) -> dict[str, Tensor]:
        mine = torch.from_numpy(domain(clients.clients)).to(update.device)[:, None]
        present = (torch.arange(number, device=update.device) == mine).to(update.dtype)
        scale = clients.server["scale"][mine]
        # divided by its scale, a client weighs its samples in these means
        loss = clients.vectors["loss"] / clients.vectors["seen"]
        return {"losses": present * loss / scale, "samples": present / scale}

    def server_init(vector: Tensor, setup: Setup) -> ServerState:
        if given is not None and len(given) != setup.num_clients:
            raise ValueError(
                f"algorithm.domains has {len(given)} entries for {setup.num_clients} clients: give each client one"
            )
        shares = np.bincount(domain(np.arange(setup.num_clients)), setup.sizes, number) / setup.sizes.sum()
        lam = torch.from_numpy(shares).to(vector)
        return {"domain_weights": lam, "shares": lam.clone(), "window": lam[None].clone(), "scale": _ratio(lam, lam)}

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        vector.add_(mean.to(vector.dtype))
        samples = round.sums["samples"]
        losses = torch.where(samples > 0, round.sums["losses"] / samples, 0.0).to(vector.dtype)
        # divided by its sum, so that only differences count, of which none overflows
        lam = state["domain_weights"] * torch.exp(domain_learning_rate * (losses - losses.max()))
        lam = torch.maximum(lam / lam.sum(), _LEAST_WEIGHT * state["shares"])
        lam = lam / lam.sum()
        recent = torch.cat([state["window"], (samples / samples.sum()).to(vector.dtype)[None]])[-window:]
        share = recent.mean(0)
        share = torch.where(share > 0, share, state["shares"])  # a domain that was not seen is as large as it is
        return state | {"domain_weights": lam, "window": recent, "scale": _ratio(lam, share)}

    return Algorithm(
        name="agnostic_fedavg",
        step=step,
        finish=finish,
        works={"loss": 1, "seen": 1},
        sums={"losses": number, "samples": number},
        broadcast={"scale": number},
        weights=weights,
        server_init=server_init,
        server_step=server_step,
    )


def _ratio(weights: Tensor, shares: Tensor) -> Tensor:
    """lambda_d / N_d; 1 for a domain without any samples, which has no clients to weigh."""
    return torch.where(shares > 0, weights / shares, 1.0)
