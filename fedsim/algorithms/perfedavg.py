"""Per-FedAvg: Fallah, Mokhtari and Ozdaglar 2020, "Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach", Algorithm 1 with its first-order (FO) and Hessian-free (HF) gradients.

A step has w' = w - alpha grad f(w, D), then goes along grad f(w', D') (FO), or along
(I - alpha Hess f(w, D'')) grad f(w', D') with the Hessian's product as a central difference of gradients (HF). D, D'
and D'' are the interleaved halves or thirds of a minibatch, so `local.batch_size` counts them together. A client's own
model is the global one after steps of size alpha on its training samples.
"""

from fedsim.algorithms.base import Algorithm, Clients


def perfedavg(
    inner_learning_rate: float = 0.01,
    hessian_free: bool = False,
    difference: float = 1e-3,
    num_own_steps: int = 1,
) -> Algorithm:
    """A global model from which one step leads to a good personal one.

    Args:
        inner_learning_rate: alpha, not negative; 0 is FedAvg on a part of each minibatch.
        hessian_free: HF instead of FO.
        difference: delta, of the central difference.
        num_own_steps: minibatches on which a client makes the global model its own, for evaluation.
    """
    if not inner_learning_rate >= 0:
        raise ValueError(f"algorithm.inner_learning_rate must not be negative, got {inner_learning_rate}")
    if not difference > 0:
        raise ValueError(f"algorithm.difference must be positive, got {difference}")
    if num_own_steps < 1:
        raise ValueError(f"algorithm.num_own_steps must be at least 1, got {num_own_steps}")
    parts = 3 if hessian_free else 2

    def step(clients: Clients) -> None:
        inner = clients.gradient(part=(0, parts)).mul_(-inner_learning_rate).add_(clients.model)
        direction = clients.gradient(inner, (1, parts))
        if hessian_free:
            ahead = clients.gradient(clients.model + difference * direction, (2, parts))
            behind = clients.gradient(clients.model - difference * direction, (2, parts))
            direction = direction.sub_(ahead.sub_(behind), alpha=inner_learning_rate / (2 * difference))
        clients.descend(direction)

    def own_step(clients: Clients) -> None:
        clients.model.sub_(clients.gradient(), alpha=inner_learning_rate)

    return Algorithm(
        name="perfedavg",
        step=step,
        own=Algorithm(name="perfedavg_own", step=own_step),
        own_steps=num_own_steps,
    )
