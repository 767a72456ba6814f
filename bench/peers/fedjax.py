"""FedJAX: its fed_avg over for_each_client, compiled (its default on one device).

A client's last minibatch is filled up with its first samples, so that shapes stay fixed: the work is that of naive's
way "filled", about 5% more samples than the others train.
"""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

if not hasattr(jax, "tree_map"):  # FedJAX 0.0.17 calls it by a name that JAX has dropped since
    jax.tree_map = jax.tree_util.tree_map
import fedjax
from fedjax.algorithms import fed_avg
from peers.common import Rounds, load


def convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """5x5 convolution, ReLU and 2x2 maximum, in JAX's usual layouts: NHWC images, HWIO kernels."""
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def logits(p: list[jax.Array], x: jax.Array) -> jax.Array:
    if len(p) == 2:
        return x @ p[0].T + p[1]
    x = convolve(convolve(x, *p[:2]), *p[2:4])
    x = jax.nn.relu(x.reshape(len(x), -1) @ p[4].T + p[5])
    return x @ p[6].T + p[7]


def loss(p: list[jax.Array], batch: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(p, batch["x"])), batch["y"][:, None], 1)
    return -chosen.mean()


def here(parameters: list[np.ndarray]) -> list[np.ndarray]:
    """From PyTorch's layouts to those of `logits`."""
    if len(parameters) == 2:
        return parameters
    p = list(parameters)
    p[0], p[2] = p[0].transpose(2, 3, 1, 0), p[2].transpose(2, 3, 1, 0)
    p[4] = p[4].reshape(-1, 64, 7, 7).transpose(0, 2, 3, 1).reshape(len(p[4]), -1)
    return p


def back(parameters: list[np.ndarray]) -> list[np.ndarray]:
    """The inverse of `here`."""
    if len(parameters) == 2:
        return parameters
    p = list(parameters)
    p[0], p[2] = p[0].transpose(3, 2, 0, 1), p[2].transpose(3, 2, 0, 1)
    p[4] = p[4].reshape(-1, 7, 7, 64).transpose(0, 3, 1, 2).reshape(len(p[4]), -1)
    return p


def main() -> None:
    work, rounds = load(), Rounds()
    inputs = work.inputs.reshape(len(work.inputs), *((28, 28, 1) if work.name == "W1" else (784,)))
    targets = work.targets.astype(np.int32)
    datasets = [fedjax.ClientDataset({"x": inputs[span], "y": targets[span]}) for span in work.spans]
    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(work.rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=work.batch, num_epochs=1, skip_shuffle=not work.shuffle, seed=0 if work.shuffle else None
        ),
    )
    fedjax.set_for_each_client_backend(work.way or "jit")
    state = algorithm.init([jnp.asarray(p) for p in here(work.parameters)])
    key = jax.random.PRNGKey(0)
    rounds.ready()
    for cohort in work.cohorts:
        key, use = jax.random.split(key)
        keys = jax.random.split(use, len(cohort))
        state, _ = algorithm.apply(state, [(str(c), datasets[c], k) for c, k in zip(cohort, keys, strict=True)])
        jax.block_until_ready(state.params)
        rounds.done()
    trained = back([np.asarray(p) for p in state.params])
    about = f"{version('fedjax')}, jax {jax.__version__}"
    rounds.finish(work, trained, version=about, note="fills up last batches")


if __name__ == "__main__":
    main()
