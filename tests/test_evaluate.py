"""Evaluation: one batched pass gives what a loop over clients gives."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fedsim.evaluate as evaluate_module
import fedsim.train.own as own_module
from fedsim.algorithms import ditto, fedavg, fedrep, perfedavg
from fedsim.config import EvaluateConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.evaluate import Evaluator, spread
from fedsim.models import convnet2, logistic, mlp
from fedsim.objective import IGNORED, class_losses, correct
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer
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
    frame = evaluator.per_client(evaluator.per_sample(vector))
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


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=2)])
@pytest.mark.parametrize("algorithm", [fedavg, ditto, fedrep, perfedavg])
def test_the_spread_over_clients_is_told_at_every_evaluation_and_changes_nothing(make_dataset, algorithm, trainer):
    """The figures of a round are those of a run that ends there; the model is that of a run without them."""
    dataset = make_dataset([6, 9, 3, 12])

    def run(num_rounds, **evaluate):
        server = ServerConfig(num_rounds=num_rounds, clients_per_round=3, evaluate_every=2)
        simulation = Simulation(
            dataset,
            partial(mlp, hidden_sizes=[5]),
            algorithm=algorithm(),
            server=server,
            evaluate=EvaluateConfig(**evaluate),
            trainer=trainer,
            device="cpu",
        )
        return simulation, list(simulation.rounds())

    whole, rows = run(4, spread=True)
    plain, bare = run(4)
    assert torch.equal(whole.server.vector, plain.server.vector)
    assert [{k: v for k, v in row.items() if "client_" not in k}.keys() for row in rows] == [row.keys() for row in bare]
    for round in (2, 4):
        ended, _ = run(round)
        expected = spread(ended.clients())
        assert {k: v for k, v in rows[round - 1].items() if "client_" in k} == pytest.approx(expected, rel=1e-6)
        assert ("global_client_accuracy_mean" in expected) == (algorithm is not fedavg)
    assert not [name for name in rows[0] if "client_" in name]


def test_sequences_count_by_place():
    """Two sequences of two places: one place right of the first, both of the second."""
    outputs = torch.zeros(2, 3, 2)
    outputs[0, 1, 0] = outputs[1, 2, 0] = outputs[1, 2, 1] = 5.0
    targets = torch.tensor([[1, 2], [2, 2]])
    assert correct(outputs, targets).tolist() == [0.5, 1.0]
    expected = nn.functional.cross_entropy(outputs, targets)
    torch.testing.assert_close(class_losses(outputs, targets).mean(), expected)


def sequences(targets, **more):
    """One token a place, and a model whose logits are the same everywhere."""
    targets = torch.as_tensor(targets)
    split = Split(inputs=torch.zeros(targets.shape), targets=targets, **more)
    dataset = FederatedDataset(name="x", train=split, client_ids=["a", "b", "c"], num_classes=2)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, x):
            return self.logits.view(1, 2, 1).expand(len(x), 2, x.shape[1])

    return Evaluator(dataset, split, FlatModel(Constant()))


def test_a_client_without_anything_to_predict_has_loss_0():
    evaluator = sequences([[1, 1], [IGNORED, IGNORED], [0, IGNORED]], offsets=np.arange(4))
    frame = evaluator.per_client(evaluator.per_sample(evaluator.model.vector))
    assert frame["accuracy"].tolist() == [1, 0, 0]
    assert frame["loss"].tolist() == pytest.approx([np.log1p(np.exp(-1)), 0, np.log1p(np.exp(1))])
    assert evaluator.mean(np.zeros(1), np.array([1])) == 0


def test_places_of_many_samples_are_counted_a_block_at_a_time():
    targets = torch.ones(70_000, 2, dtype=torch.int64)
    targets[-3:, 1] = IGNORED
    evaluator = sequences(targets, offsets=np.array([0, 10, 20, 70_000]))
    places = evaluator.places()
    assert (len(places), places.sum(), places[-4:].tolist()) == (70_000, 139_997, [2, 1, 1, 1])


def test_samples_that_nobody_owns_are_left_out():
    """Three clients own the first four rows of the order."""
    order = np.array([5, 3, 1, 0, 2, 4])
    evaluator = sequences(torch.ones(6, 1, dtype=torch.int64), offsets=np.array([0, 1, 2, 4]), order=order)
    assert evaluator.rows.tolist() == [5, 3, 1, 0]
    drawn = evaluator.draw(3, 0)
    assert len(drawn) == 3
    assert sorted(drawn, key=order.tolist().index) == drawn.tolist(), "in the clients' order, which lies near together"
    assert evaluator.draw(4, 0).tolist() == evaluator.draw(None, 0).tolist() == [5, 3, 1, 0]


@pytest.mark.parametrize("module", [evaluate_module, own_module])
def test_models_are_evaluated_in_float32(make_dataset, monkeypatch, module):
    """A GPU would convolve in TF32 by PyTorch's default; a personal model takes its steps in float32, too."""
    seen = []

    @contextmanager
    def products(precision, device):
        seen.append((precision, device.type))
        yield

    monkeypatch.setattr(module, "products", products)
    simulation = Simulation(
        make_dataset([6, 9]),
        logistic,
        algorithm=perfedavg(),
        server=ServerConfig(num_rounds=1, clients_per_round=2),
        trainer=SerialTrainer,
        device="cpu",
    )
    simulation.clients()
    assert set(seen) == {("float32", "cpu")}


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
