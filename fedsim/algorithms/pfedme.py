"""pFedMe: Dinh, Tran and Nguyen 2020, "Personalized Federated Learning with Moreau Envelopes", Algorithm 1.

On each minibatch a client first takes `num_inner_steps` gradient steps towards the minimiser theta of its loss +
(lambda / 2) ||theta - w||^2, and then moves w by - eta lambda (w - theta), eta the local learning rate. theta begins a
round at w and goes on from where it was. The server moves by beta times the mean update. A client's own model is theta.
"""

from torch import Tensor

from fedsim.algorithms.base import Algorithm, Clients, Kept, Round, ServerState
from fedsim.algorithms.ditto import use_own


def pfedme(
    proximal_weight: float = 15.0,
    inner_learning_rate: float = 0.01,
    num_inner_steps: int = 5,
    server_weight: float = 1.0,
) -> Algorithm:
    """Personal models as proximal points of the clients' losses.

    Args:
        proximal_weight: lambda, positive.
        inner_learning_rate: of the steps towards theta.
        num_inner_steps: K.
        server_weight: beta.
    """
    if not proximal_weight > 0:
        raise ValueError(f"algorithm.proximal_weight must be positive, got {proximal_weight}")
    if num_inner_steps < 1:
        raise ValueError(f"algorithm.num_inner_steps must be at least 1, got {num_inner_steps}")

    def begin(clients: Clients) -> None:
        size = clients.model.shape[1]
        clients.vectors["own"][:, :size] = clients.model
        clients.vectors["own"][:, size:] = clients.buffers

    def step(clients: Clients) -> None:
        size = clients.model.shape[1]
        own = clients.vectors["own"]
        theta = own[:, :size]
        for _ in range(num_inner_steps):
            gradient = clients.gradient("own").add_(theta - clients.model, alpha=proximal_weight)
            theta.sub_(gradient, alpha=inner_learning_rate)
        clients.descend((clients.model - theta).mul_(proximal_weight))
        clients.buffers.copy_(own[:, size:])

    def server_step(vector: Tensor, mean: Tensor, state: ServerState, round: Round) -> ServerState:
        size = round.num_parameters
        vector[:size] += (server_weight * mean[:size]).to(vector.dtype)
        vector[size:] += mean[size:].to(vector.dtype)
        return state

    return Algorithm(
        name="pfedme",
        begin=begin,
        step=step,
        keeps={"own": Kept(size="model", start="model")},
        own=Algorithm(name="pfedme_own", begin=use_own),
        server_step=server_step,
    )
