"""Generated sets of the literature: every client draws its samples from a distribution and a model of its own.

- `synthetic_fedprox`: Synthetic(alpha, beta) and its iid form. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated
  optimization in heterogeneous networks, MLSys 2020, section 5.1, after Shamir et al. 2014. The paper writes
  N(0, alpha); alpha and beta are standard deviations here, as in the authors' program (at 0 and 1 it is the same).
- `synthetic_leaf`: Caldas et al., LEAF: a benchmark for federated settings, 2018, its set "synthetic".
- `fcube`: Li, Diao, Chen, He: Federated learning on non-IID data silos, ICDE 2022, section 4.2 (NIID-Bench).

Samples are drawn for all clients at once, in float64; a label is the class that the client's own model gives the
stored float32 sample, so that no machine's rounding decides it.
"""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import torch

from fedsim.data.deal.base import offsets_of
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.held_out import check_fraction, held_out_sizes
from fedsim.rng import stream

# The clients of FCUBE and the signs of (x1, x2, x3) in the octant that each owns together with the opposite one.
FCUBE_OCTANTS = {"+++,---": (1, 1, 1), "++-,--+": (1, 1, -1), "+-+,-+-": (1, -1, 1), "+--,-++": (1, -1, -1)}


def synthetic_fedprox(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    iid: bool = False,
    num_clients: int = 30,
    num_features: int = 60,
    num_classes: int = 10,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> FederatedDataset:
    """Synthetic(alpha, beta): y = argmax(W_k x + b_k) on x ~ N(v_k, Sigma), with Sigma_jj = j^-1.2.

    W_k, b_k ~ N(u_k, 1) with u_k ~ N(0, alpha^2): how much local models differ. v_k ~ N(B_k, 1) with
    B_k ~ N(0, beta^2): how much local inputs differ. A client has floor(LogN(4, 2)) + 50 samples.

    Args:
        alpha, beta: see above, 0 or more.
        iid: one W, b ~ N(0, 1) and v = 0 for all clients (the paper's Synthetic-IID); alpha and beta must be 0.
        num_clients: the paper's is 30.
        num_features: of a sample (d).
        num_classes: of the labels.
        test_fraction: share of each client's samples held out for tests, in [0, 1); 0 for no test set.
        seed: of everything that is drawn.

    Returns:
        Inputs (N, num_features) float32, targets (N,) int64.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(num_clients=num_clients, num_features=num_features, num_classes=num_classes)
    if not (alpha >= 0 and beta >= 0):
        raise ValueError(f"data.alpha and data.beta must be 0 or more, got {alpha} and {beta}")
    if iid and (alpha or beta):
        raise ValueError(
            f"data.iid=true makes all clients alike, but data.alpha is {alpha} and data.beta {beta}: set both to 0"
        )
    rng = stream(seed, "synthetic_fedprox")
    sizes = _log_normal(rng, num_clients, 4.0) + 50
    model_means = alpha * rng.standard_normal(num_clients)  # u
    input_means = beta * rng.standard_normal(num_clients)  # B
    means = np.zeros((num_clients, num_features))  # v
    if not iid:
        means += input_means[:, None] + rng.standard_normal(means.shape)
    num_models = 1 if iid else num_clients
    weights = rng.standard_normal((num_models, num_features + 1, num_classes))  # the bias is the first row
    weights = np.broadcast_to(weights + model_means[:num_models, None, None], (num_clients, *weights.shape[1:]))
    inputs = _inputs(rng, means, sizes)
    name = "synthetic_iid" if iid else f"synthetic({alpha:g}, {beta:g})"
    return _dataset(name, inputs, _labels(inputs, weights, sizes), sizes, test_fraction, num_classes)


def synthetic_leaf(
    *,
    num_clients: int = 1000,
    num_features: int = 60,
    num_classes: int = 5,
    clusters: Sequence[float] = (1.0,),
    test_fraction: float = 0.1,
    seed: int = 0,
) -> FederatedDataset:
    """LEAF's synthetic set: y = argmax([1, x] Q u_k + noise), where clients of one cluster have similar u_k.

    Q ~ N(0, 1), (d + 1, classes, k), is common to all. Cluster c has m_c ~ N(0, 1) and mu_c ~ N(m_c, 1), (k,). A
    client of cluster c draws u ~ N(mu_c, 0.1^2), B ~ N(0, 1), v ~ N(B, 1), (d,), and inputs x ~ N(v, Sigma) with
    Sigma_ii = i^-1.2; the noise on each logit is N(0, 0.1^2). Its number of samples is
    min(floor(LogN(3, 2)) + 5, 1000).

    Args:
        num_clients: LEAF's tasks.
        num_features: d.
        num_classes: of the labels.
        clusters: the k clusters' probabilities, which add up to 1.
        test_fraction: share of each client's samples held out for tests, in [0, 1); 0 for no test set.
        seed: of everything that is drawn.

    Returns:
        Inputs (N, num_features) float32, targets (N,) int64.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(num_clients=num_clients, num_features=num_features, num_classes=num_classes)
    shares = np.array(clusters, dtype=float)
    if shares.ndim != 1 or not len(shares) or not np.all(shares >= 0) or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"data.clusters must be probabilities that add up to 1, got {list(clusters)}")
    rng = stream(seed, "synthetic_leaf")
    num_clusters = len(shares)
    common = rng.standard_normal((num_features + 1, num_classes, num_clusters))  # Q
    centres = rng.standard_normal((num_clusters, 1)) + rng.standard_normal((num_clusters, num_clusters))  # mu
    sizes = np.minimum(_log_normal(rng, num_clients, 3.0) + 5, 1000)
    cluster = rng.choice(num_clusters, num_clients, p=shares / shares.sum())
    models = centres[cluster] + 0.1 * rng.standard_normal((num_clients, num_clusters))  # u
    weights = np.tensordot(models, common, axes=(1, 2))  # (clients, d + 1, classes)
    means = rng.standard_normal((num_clients, 1)) + rng.standard_normal((num_clients, num_features))  # v
    inputs = _inputs(rng, means, sizes)
    noise = 0.1 * rng.standard_normal((len(inputs), num_classes))
    labels = _labels(inputs, weights, sizes, noise)
    return _dataset("synthetic_leaf", inputs, labels, sizes, test_fraction, num_classes)


def fcube(*, num_samples: int = 4000, num_test: int = 1000, seed: int = 0) -> FederatedDataset:
    """FCUBE: points of the cube (-1, 1)^3, labelled by the side of the plane x1 = 0: y = [x1 <= 0].

    Training samples are as many in each octant (to one); the four clients own two opposite octants each
    (`FCUBE_OCTANTS`), so that each sees both classes, but only a part of the cube. Test samples are uniform.

    Args:
        num_samples: for training.
        num_test: central test samples; 0 for no test set.
        seed: of the draw.

    Returns:
        Inputs (N, 3) float32, targets (N,) int64 in [0, 2).

    Raises:
        ValueError: an argument is out of range.
    """
    if num_samples < 8 or num_test < 0:
        raise ValueError(
            f"data.num_samples is {num_samples} and data.num_test {num_test}: choose at least 8, one an octant, and "
            "0 or more"
        )
    rng = stream(seed, "fcube")
    client = np.sort(np.arange(num_samples) % 4)
    side = np.where(np.arange(num_samples) % 2 == 0, 1, -1)  # which of the client's two octants
    signs = np.array(list(FCUBE_OCTANTS.values()))[client] * side[:, None]
    train = ((1 - rng.random((num_samples, 3), dtype=np.float32)) * signs).astype(np.float32)  # magnitudes in (0, 1]
    test = 1 - 2 * rng.random((num_test, 3), dtype=np.float32)

    def split(points: np.ndarray, offsets: np.ndarray | None) -> Split:
        return Split(
            inputs=torch.from_numpy(points),
            targets=torch.from_numpy((points[:, 0] <= 0).astype(np.int64)),
            offsets=offsets,
        )

    return FederatedDataset(
        name="fcube",
        train=split(train, offsets_of(np.bincount(client))),
        test=split(test, None) if num_test else None,
        client_ids=list(FCUBE_OCTANTS),
        num_classes=2,
        source="generated",
    )


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"data.{name} must be a positive integer, got {value!r}")


def _log_normal(rng: np.random.Generator, count: int, mean: float) -> np.ndarray:
    """(count,) int64: floor of LogN(mean, 2)."""
    return np.floor(rng.lognormal(mean, 2.0, count)).astype(np.int64)


def _inputs(rng: np.random.Generator, means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N, d) float32, client after client: N(means[k], Sigma) with Sigma_jj = j^-1.2."""
    # Decimal arithmetic is the same everywhere; the powers of NumPy and of C libraries differ in the last bit.
    deviations = np.array([float(Decimal(j) ** Decimal("-0.6")) for j in range(1, means.shape[1] + 1)])
    inputs = rng.standard_normal((int(sizes.sum()), means.shape[1]))
    inputs *= deviations
    inputs += np.repeat(means, sizes, axis=0)
    return inputs.astype(np.float32)


def _labels(inputs: np.ndarray, weights: np.ndarray, sizes: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64: argmax of [1, x] weights[k] (+ noise) for (C, d + 1, classes) weights; softmax keeps the argmax."""
    logits = np.empty((len(inputs), weights.shape[2]))
    bounds = offsets_of(sizes)
    for client, own in enumerate(weights):
        rows = slice(bounds[client], bounds[client + 1])
        np.matmul(inputs[rows].astype(np.float64), own[1:], out=logits[rows])
        logits[rows] += own[0]
    if noise is not None:
        logits += noise
    return logits.argmax(axis=1)


def _dataset(
    name: str, inputs: np.ndarray, targets: np.ndarray, sizes: np.ndarray, test_fraction: float, num_classes: int
) -> FederatedDataset:
    """Clients one after another; the first of their independent samples are held out."""
    check_fraction(test_fraction)
    held = held_out_sizes(sizes, test_fraction)
    place = np.arange(len(inputs)) - np.repeat(offsets_of(sizes)[:-1], sizes)
    is_test = place < np.repeat(held, sizes)

    def split(rows: np.ndarray, own: np.ndarray) -> Split:
        kept = torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows])
        return Split(inputs=kept[0], targets=kept[1], offsets=offsets_of(own))

    return FederatedDataset(
        name=name,
        train=split(~is_test, sizes - held),
        test=split(is_test, held) if test_fraction else None,
        client_ids=[f"client_{client:04d}" for client in range(len(sizes))],
        num_classes=num_classes,
        source="generated",
    )
