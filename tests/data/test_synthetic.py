"""The generated sets, proved by the statistics of their formulas. Limits are five standard errors or more."""

from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data import synthetic
from fedsim.data.federated import FederatedDataset, Split
from fedsim.data.synthetic import FCUBE_OCTANTS, fcube, synthetic_fedprox, synthetic_leaf


def samples(dataset: FederatedDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and owners of all samples, training and test."""
    inputs, targets, owners = [], [], []
    for split in (dataset.train, dataset.test):
        if split is None:
            continue
        inputs.append(split.inputs.numpy())
        targets.append(split.targets.numpy())
        owners.append(np.repeat(np.arange(split.num_clients), split.sizes))
    return np.concatenate(inputs), np.concatenate(targets), np.concatenate(owners)


def client_means(dataset: FederatedDataset) -> np.ndarray:
    """(C, d): each client's mean input."""
    inputs, _, owners = samples(dataset)
    sums = np.zeros((dataset.num_clients, inputs.shape[1]))
    np.add.at(sums, owners, inputs)
    return sums / np.bincount(owners)[:, None]


def check_form(dataset: FederatedDataset, num_classes: int) -> None:
    assert dataset.source == "generated"
    assert dataset.num_classes == num_classes
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.targets.dtype == torch.int64
    assert dataset.train.order is None
    targets = dataset.train.targets.numpy()
    assert np.unique(targets).tolist() == list(range(num_classes))


def check_sizes(dataset: FederatedDataset, location: float, least: int, most: float) -> None:
    """Sizes are min(floor(LogN(location, 2)) + least, most): log(size - least) is normal in the middle."""
    sizes = dataset.train.sizes + (0 if dataset.test is None else dataset.test.sizes)
    assert sizes.min() >= least
    assert sizes.max() <= most
    # Quantiles of the log-normal are exp(location + 2 z), and floor takes at most 1 of them.
    for quantile, z in ((0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745)):
        expected = np.exp(location + 2 * z)
        share = np.mean(sizes - least <= expected)
        error = np.sqrt(quantile * (1 - quantile) / len(sizes))
        step = 0.2 / expected  # the distribution function rises by at most this where the floor is taken
        assert abs(share - quantile) < 5 * error + step


def fit(inputs: np.ndarray, targets: np.ndarray, num_classes: int) -> float:
    """Training accuracy of one linear model fitted by gradient descent with momentum."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1)], dim=1)
    weight = torch.zeros(x.shape[1], num_classes)
    velocity = torch.zeros_like(weight)
    goal = torch.nn.functional.one_hot(y, num_classes)
    for _ in range(150):
        velocity = 0.9 * velocity + x.T @ ((x @ weight).softmax(1) - goal) / len(x)
        weight = weight - velocity
    return ((x @ weight).argmax(1) == y).float().mean().item()


def test_fedprox_has_the_papers_defaults() -> None:
    dataset = synthetic_fedprox()
    check_form(dataset, 10)
    assert (dataset.name, dataset.num_clients, dataset.input_shape) == ("synthetic(1, 1)", 30, (60,))
    assert dataset.test is not None
    total = dataset.train.sizes + dataset.test.sizes
    assert np.abs(dataset.test.sizes - 0.1 * total).max() <= 0.5


def test_fedprox_sizes_are_log_normal() -> None:
    dataset = synthetic_fedprox(num_clients=400, num_features=1, num_classes=2)
    check_sizes(dataset, 4.0, 50, np.inf)


@pytest.mark.parametrize(("beta", "iid"), [(0.0, False), (1.0, False), (3.0, False), (0.0, True)])
def test_fedprox_inputs_follow_their_distributions(beta: float, iid: bool) -> None:
    num_clients, d = 200, 20
    dataset = synthetic_fedprox(alpha=0, beta=beta, iid=iid, num_clients=num_clients, num_features=d, num_classes=2)
    inputs, _, owners = samples(dataset)
    means = client_means(dataset)
    within = inputs - means[owners]
    covariance = within.T @ within / (len(inputs) - num_clients)
    expected = np.diag(np.arange(1, d + 1) ** -1.2)
    assert np.abs(covariance - expected).max() < 5 * np.sqrt(2 / len(inputs))  # the largest variance is 1
    # v_kj ~ N(B_k, 1), B_k ~ N(0, beta^2): the mean of a client's means spreads as beta^2 + 1 / d, around it as 1.
    if iid:
        bound = 6 / np.sqrt(np.bincount(owners))[:, None]  # a mean of n samples, of variance at most 1
        assert np.all(np.abs(means) < bound)
        return
    centres = means.mean(axis=1)
    assert abs(centres.var() / (beta**2 + 1 / d) - 1) < 5 * np.sqrt(2 / num_clients) + 0.05
    spread = (means - centres[:, None]).var(axis=1, ddof=1).mean()
    assert abs(spread - 1) < 5 * np.sqrt(2 / (d * num_clients)) + 0.05


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_fedprox_labels_are_those_of_the_clients_own_linear_models(alpha: float) -> None:
    dataset = synthetic_fedprox(alpha=alpha, beta=0, num_clients=6, num_features=10, num_classes=3, seed=1)
    inputs, targets, owners = samples(dataset)
    place = np.arange(len(owners)) - np.searchsorted(np.sort(owners), np.arange(6))[np.sort(owners)]
    few = np.argsort(owners, kind="stable")[place < 300]  # of each client, for the test's speed
    inputs, targets, owners = inputs[few], targets[few], owners[few]
    own = [fit(inputs[owners == client], targets[owners == client], 3) for client in range(6)]
    assert min(own) > 0.95  # one linear model separates the classes of one client ...
    assert fit(inputs, targets, 3) < 0.85  # ... and not those of all


def test_fedprox_iid_has_one_model() -> None:
    dataset = synthetic_fedprox(alpha=0, beta=0, iid=True, num_clients=20, num_features=10, num_classes=3)
    assert dataset.name == "synthetic_iid"
    inputs, targets, _ = samples(dataset)
    assert fit(inputs[:3000], targets[:3000], 3) > 0.97


def test_fedprox_model_means_spread_by_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}
    labels = synthetic._labels

    def spy(inputs: np.ndarray, weights: np.ndarray, *rest: Any) -> np.ndarray:
        seen["weights"] = np.array(weights)
        return labels(inputs, weights, *rest)

    monkeypatch.setattr(synthetic, "_labels", spy)
    synthetic_fedprox(alpha=2.0, beta=0, num_clients=400, num_features=20, num_classes=5)
    weights = seen["weights"].reshape(400, -1)  # (d + 1) x classes entries of N(u_k, 1)
    centres = weights.mean(axis=1)
    assert abs(centres.var() / (4 + 1 / weights.shape[1]) - 1) < 5 * np.sqrt(2 / 400)
    assert abs((weights - centres[:, None]).var() - 1) < 5 * np.sqrt(2 / weights.size) + 0.02
    synthetic_fedprox(alpha=0, beta=0, iid=True, num_clients=3, num_features=4, num_classes=2)
    assert np.all(seen["weights"] == seen["weights"][0])


def test_labels_are_the_argmax_of_the_affine_model() -> None:
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(2, 4, 5))
    noise = rng.normal(size=(7, 5))
    sizes = np.array([3, 4])
    expected = []
    for row, x in enumerate(inputs):
        logits = np.concatenate([[1.0], x]) @ weights[int(row >= 3)] + noise[row]
        expected.append(np.argmax(np.exp(logits) / np.exp(logits).sum()))
    assert synthetic._labels(inputs, weights, sizes, noise).tolist() == expected


def test_leaf_has_leafs_defaults_and_sizes() -> None:
    dataset = synthetic_leaf()
    check_form(dataset, 5)
    assert (dataset.name, dataset.num_clients, dataset.input_shape) == ("synthetic_leaf", 1000, (60,))
    check_sizes(dataset, 3.0, 5, 1000)
    sizes = samples(dataset)[2]
    # P(LogN(3, 2) >= 995) = P(z >= (log(995) - 3) / 2) = P(z >= 1.951) = 0.0255 of the clients have 1,000 samples.
    full = np.mean(np.bincount(sizes) == 1000)
    assert abs(full - 0.0255) < 5 * np.sqrt(0.0255 * 0.9745 / 1000)


def test_leaf_inputs_follow_their_distributions() -> None:
    dataset = synthetic_leaf(num_clients=600, num_features=20)
    inputs, _, owners = samples(dataset)
    means = client_means(dataset)
    within = inputs - means[owners]
    covariance = within.T @ within / (len(inputs) - 600)
    assert np.abs(covariance - np.diag(np.arange(1, 21) ** -1.2)).max() < 5 * np.sqrt(2 / len(inputs))
    # v_j ~ N(B, 1), B ~ N(0, 1); a client of n samples adds Sigma_jj / n, of 5 samples 0.05 on average over j.
    centres = means.mean(axis=1)
    assert abs(centres.var() / (1 + 1 / 20) - 1) < 5 * np.sqrt(2 / 600)
    assert abs((means - centres[:, None]).var(axis=1, ddof=1).mean() - 1) < 5 * np.sqrt(2 / (600 * 20)) + 0.03


def test_clients_of_one_leaf_cluster_share_their_model_up_to_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}
    labels = synthetic._labels

    def spy(inputs: np.ndarray, weights: np.ndarray, sizes: np.ndarray, noise: np.ndarray) -> np.ndarray:
        seen.update(weights=weights, noise=noise)
        return labels(inputs, weights, sizes, noise)

    monkeypatch.setattr(synthetic, "_labels", spy)
    synthetic_leaf(num_clients=500, num_features=15, num_classes=4, clusters=[0.3, 0.7], seed=2)
    weights = seen["weights"].reshape(500, -1)
    assert abs(seen["noise"].std() / 0.1 - 1) < 0.02
    assert abs(seen["noise"].mean()) < 0.001
    # w_k = Q u_k with u_k of 2 dimensions, so all models lie in a plane; in it are two clouds, 30 and 70 % of them.
    _, values, directions = np.linalg.svd(weights, full_matrices=False)
    assert values[2] < 1e-9 * values[0]
    plane = weights @ directions[:2].T
    far = plane[np.argmax(np.linalg.norm(plane - plane[0], axis=1))]
    centres = np.stack([plane[0], far])
    for _ in range(10):  # k-means
        near = np.linalg.norm(plane - centres[0], axis=1) < np.linalg.norm(plane - centres[1], axis=1)
        centres = np.stack([plane[near].mean(axis=0), plane[~near].mean(axis=0)])
    assert sorted([near.mean(), 1 - near.mean()])[0] == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 500))
    # Within a cloud, an entry of w_k varies by (q_1^2 + q_2^2) 0.1^2, and the q are N(0, 1): 0.02 on average.
    for cloud in (near, ~near):
        variance = weights[cloud].var(axis=0).mean()
        assert 0.01 < variance < 0.035


def test_fcube_is_a_cube_whose_clients_have_opposite_octants() -> None:
    dataset = fcube(num_samples=4001, num_test=2000)
    check_form(dataset, 2)
    assert list(dataset.client_ids) == ["+++,---", "++-,--+", "+-+,-+-", "+--,-++"]
    inputs = dataset.train.inputs.numpy()
    for client, octants in enumerate(dataset.client_ids):
        own = inputs[dataset.train.rows(client)]
        signs = {"".join("+" if x > 0 else "-" for x in row) for row in own}
        assert signs == set(octants.split(","))
        assert len(own) in (1000, 1001)
        assert np.bincount(dataset.train.targets[dataset.train.rows(client)]).min() in (500, 501)
    assert set(FCUBE_OCTANTS) == set(dataset.client_ids)
    assert isinstance(dataset.test, Split)
    assert not dataset.test.owned
    for split in (dataset.train, dataset.test):
        points = split.inputs.numpy()
        assert split.targets.tolist() == (points[:, 0] <= 0).astype(int).tolist()
        assert np.abs(points).max() <= 1
        # A magnitude is uniform: mean 1/2, variance 1/12.
        error = np.sqrt(1 / 12 / points.size)
        assert abs(np.abs(points).mean() - 0.5) < 5 * error
        assert abs(np.abs(points).var() - 1 / 12) < 0.01


MAKERS = [
    (synthetic_fedprox, {"num_clients": 5}),
    (synthetic_leaf, {"num_clients": 5}),
    (fcube, {}),
]


@pytest.mark.parametrize(("make", "arguments"), MAKERS)
def test_data_are_a_function_of_the_seed(make: Any, arguments: dict[str, Any]) -> None:
    one, same, other = (make(**arguments, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_without_a_test_fraction_there_is_no_test_set() -> None:
    assert synthetic_fedprox(num_clients=2, test_fraction=0).test is None
    assert fcube(num_test=0).test is None


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (synthetic_fedprox, {"alpha": -1}, "data.alpha and data.beta must be 0 or more"),
        (synthetic_fedprox, {"iid": True}, "data.iid=true makes all clients alike, but data.alpha is 1"),
        (synthetic_fedprox, {"num_clients": 0}, "data.num_clients must be a positive integer, got 0"),
        (synthetic_fedprox, {"test_fraction": 1.0}, "data.test_fraction is 1.0"),
        (synthetic_leaf, {"clusters": [0.5, 0.4]}, "data.clusters must be probabilities that add up to 1"),
        (synthetic_leaf, {"num_classes": 2.5}, "data.num_classes must be a positive integer"),
        (fcube, {"num_samples": 7}, "data.num_samples is 7 and data.num_test 1000: choose at least 8"),
    ],
)
def test_mistakes_name_the_option(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)
