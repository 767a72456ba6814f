"""What a round of training reports beside the average."""

import math
from collections.abc import Sequence

from torch import Tensor

from fedsim.aggregate import EXACT_LENGTH
from fedsim.train.plan import Plan


def summarise(plan: Plan, client_ids: Sequence[str], loss_sums: Tensor, squared_norms: Tensor) -> dict[str, float]:
    """Sums over the clients of a plan; this is where the host waits for the device, once a round.

    Args:
        plan: the round.
        client_ids: the clients' names, for the error.
        loss_sums: (m,) sum of the losses of the samples that each client saw, each before its step, in nats.
        squared_norms: (m,) squared Euclidean norm of each client's update, or of a part that is not finite
            whenever the whole is not.

    Returns:
        loss_sum, samples (seen, so epochs count), clients, and long_updates, those of a length that may leave the
        range of exact sums (`fedsim.aggregate`).

    Raises:
        ValueError: names the first client whose loss or update is not finite.
    """
    losses, norms = loss_sums.tolist(), squared_norms.tolist()
    for client, loss, norm in zip(plan.clients.tolist(), losses, norms, strict=True):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "update" if math.isfinite(loss) else "loss"
            raise ValueError(
                f"round {plan.round}: the {what} of client {client} ({client_ids[client]}) is not finite: "
                "lower local.learning_rate or set local.max_gradient_norm"
            )
    return {
        "loss_sum": math.fsum(losses),
        "samples": float(plan.counts.sum()),
        "clients": float(len(plan.clients)),
        "long_updates": float(sum(norm >= EXACT_LENGTH**2 for norm in norms)),
    }
