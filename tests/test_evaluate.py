"""Evaluation: one batched pass gives what a loop over clients gives."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fedsim.config import EvaluateConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.evaluate import Evaluator, spread
from fedsim.models import convnet2, logistic
from fedsim.objective import correct, cross_entropy
from fedsim.simulation import Simulation
from fedsim.vector import FlatModel


@pytest.mark.parametrize("order", [False, True])
def test_per_client_equals_a_loop_over_clients(make_dataset, order):
    sizes = [5, 0, 700, 1, 30]
    dataset = make_dataset(sizes, shape=(1, 8, 8))
    permutation = np.random.default_rng(0).permutation(sum(sizes)) if order else None
    split = Split(
        inputs=dataset.train.inputs, targets=dataset.train.targets, offsets=dataset.train.offsets, order=permutation
    )
    model = FlatModel(convnet2((1, 8, 8), 4, hidden_size=8))
    vector = model.vector + 0.1
    evaluator = Evaluator(dataset, split, model)
    frame = evaluator.per_client(*evaluator.per_sample(vector))
    assert frame["client"].tolist() == ["client_0", "client_2", "client_3", "client_4"]
    model.load(vector)
    model.module.eval()
    for row, client in zip(frame.itertuples(), (0, 2, 3, 4), strict=True):
        rows = torch.from_numpy(split.rows(client))
        with torch.no_grad():
            outputs = model.module(split.inputs[rows])
        assert row.samples == len(rows)
        assert row.loss == pytest.approx(nn.functional.cross_entropy(outputs, split.targets[rows]).item(), rel=1e-5)
        assert row.accuracy == pytest.approx((outputs.argmax(1) == split.targets[rows]).double().mean().item())


def test_spread_is_numpys():
    accuracy = np.linspace(0, 1, 11)
    stats = spread(pd.DataFrame({"accuracy": accuracy, "samples": np.arange(11)}))
    assert stats["client_accuracy_mean"] == pytest.approx(0.5)
    assert stats["client_accuracy_weighted"] == pytest.approx((accuracy * np.arange(11)).sum() / 55)
    assert [stats[f"client_accuracy_{p}"] for p in ("p10", "p50", "p90", "worst")] == pytest.approx([0.1, 0.5, 0.9, 0])


def test_sequences_count_by_place():
    """Two sequences of two places: one place right of the first, both of the second."""
    outputs = torch.zeros(2, 3, 2)
    outputs[0, 1, 0] = outputs[1, 2, 0] = outputs[1, 2, 1] = 5.0
    targets = torch.tensor([[1, 2], [2, 2]])
    assert correct(outputs, targets).tolist() == [0.5, 1.0]
    expected = nn.functional.cross_entropy(outputs, targets)
    torch.testing.assert_close(cross_entropy(outputs, targets).mean(), expected)


def test_the_preview_is_a_fixed_draw_and_the_last_round_takes_all(make_dataset):
    dataset = make_dataset([20, 20])
    simulation = Simulation(
        dataset,
        logistic,
        server=ServerConfig(num_rounds=2, clients_per_round=1, evaluate_every=1),
        evaluate=EvaluateConfig(max_samples=17),
        device="cpu",
    )
    first, last = simulation.rounds()
    assert simulation.evaluate(whole=True)["test_accuracy"] == last["test_accuracy"]
    assert simulation.evaluate(whole=False)["test_accuracy"] != last["test_accuracy"]
    assert (first["test_accuracy"] * 17) % 1 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("owned", [True, False])
def test_the_last_round_is_judged_by_a_fixed_draw_of_clients(make_dataset, owned):
    """The accuracy of the last round is that of the clients in clients.csv, weighted by samples, and they are few."""
    sizes = [20, 3, 0, 7, 11, 5]
    dataset = make_dataset(sizes)
    if owned:
        dataset = replace(dataset, test=dataset.train)

    def run(**evaluate):
        simulation = Simulation(
            dataset,
            logistic,
            server=ServerConfig(num_rounds=1, clients_per_round=2),
            evaluate=EvaluateConfig(**evaluate),
            device="cpu",
        )
        (metrics,) = simulation.rounds()
        return metrics, simulation.clients()

    metrics, clients = run(max_clients=3)
    everyone, all_clients = run()
    assert (len(clients), len(all_clients)) == (3, 5)
    chosen = all_clients[all_clients["client"].isin(clients["client"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(clients, chosen)
    if owned:
        assert metrics["test_accuracy"] == pytest.approx(np.average(clients["accuracy"], weights=clients["samples"]))
        assert metrics["test_loss"] != everyone["test_loss"]
    else:
        assert metrics["test_loss"] == everyone["test_loss"]
    assert run(max_clients=5)[0]["test_loss"] == everyone["test_loss"]


def test_without_a_test_set_clients_are_evaluated_on_their_training_samples(make_dataset):
    dataset = make_dataset([6, 9])
    dataset = FederatedDataset(name="x", train=dataset.train, client_ids=dataset.client_ids, num_classes=4)
    simulation = Simulation(dataset, logistic, server=ServerConfig(num_rounds=1, clients_per_round=2), device="cpu")
    (metrics,) = simulation.rounds()
    assert "test_loss" not in metrics
    clients = simulation.clients()
    assert clients["split"].tolist() == ["train", "train"]
    assert clients["samples"].tolist() == [6, 9]
