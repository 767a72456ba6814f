"""Sequences of tokens: recurrent models in both trainers, and places that do not count."""

import dataclasses
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.config import LocalConfig, ServerConfig
from fedsim.data.federated import FederatedDataset, Split
from fedsim.evaluate import Evaluator
from fedsim.models import reddit_lstm, sent140_lstm, shakespeare_lstm
from fedsim.objective import IGNORED, class_losses, correct, num_places
from fedsim.simulation import Simulation
from fedsim.train.recurrent import UnrolledLSTM
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = np.array([7, 12, 3, 1, 9])
WORDS, LENGTH = 11, 6
RICH = LocalConfig(
    batch_size=4, num_epochs=2, learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, max_gradient_norm=0.5
)


def as_int64(tokens):
    return tokens.long()


def make(num_classes: int, *, every_place: bool = False, seed: int = 0) -> FederatedDataset:
    """Clients with random tokens; with a target at every place, texts end early and what is behind does not count."""
    rng = np.random.default_rng(seed)
    total = int(SIZES.sum())
    tokens = torch.from_numpy(rng.integers(0, WORDS, (total, LENGTH), dtype=np.int32))
    targets = torch.from_numpy(rng.integers(0, num_classes, (total, LENGTH) if every_place else total))
    if every_place:
        lengths = torch.from_numpy(rng.integers(1, LENGTH + 1, (total, 1)))
        targets[torch.arange(LENGTH) >= lengths] = IGNORED
    split = Split(inputs=tokens, targets=targets, offsets=np.append(0, np.cumsum(SIZES)))
    return FederatedDataset(
        name="tokens",
        train=split,
        test=split,
        client_ids=[str(c) for c in range(len(SIZES))],
        num_classes=num_classes,
        preprocess=as_int64,
    )


def run(dataset, factory, trainer, local=RICH):
    simulation = Simulation(
        dataset,
        lambda shape, classes: factory(shape, classes).double(),
        local=local,
        server=ServerConfig(num_rounds=2, clients_per_round=len(SIZES), evaluate_every=0),
        trainer=trainer,
        device="cpu",
    )
    losses = [simulation.server.run_round()["train_loss"] for _ in range(2)]
    return simulation.server.vector, losses, simulation


CASES = {
    "shakespeare": (partial(shakespeare_lstm, hidden_size=5), make(WORDS)),
    "sent140": (partial(sent140_lstm, vocabulary_size=WORDS, embedding_size=3, hidden_size=4, dense_size=6), make(2)),
    "reddit": (partial(reddit_lstm, embedding_size=3, hidden_size=4), make(WORDS, every_place=True)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_slots", [1, 3])
def test_vectorized_equals_serial(name, num_slots, caplog):
    factory, dataset = CASES[name]
    expected, losses, _ = run(dataset, factory, SerialTrainer)
    vector, found, _ = run(dataset, factory, partial(VectorizedTrainer, num_slots=num_slots))
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
    assert found == pytest.approx(losses, rel=1e-9)
    assert not caplog.records, "the step was not traced"


def test_serial_equals_the_textbook_loop_with_pytorchs_ignored_index():
    """One full-batch step of every client, then their mean by samples; each sequence's loss is a mean over its end."""
    factory, dataset = CASES["reddit"]
    local = LocalConfig(batch_size=None, learning_rate=0.3)
    vector, _, simulation = run(dataset, factory, SerialTrainer, local)
    model = simulation.model
    everyone = ServerConfig(clients_per_round=len(SIZES))
    start = Simulation(dataset, lambda s, c: factory(s, c).double(), server=everyone, device="cpu").server.vector
    for _ in range(2):
        total = torch.zeros_like(start)
        for client, size in enumerate(SIZES):
            model.load(start)
            rows = torch.from_numpy(dataset.train.rows(client))
            outputs = model.module(dataset.train.inputs[rows].long())
            losses = [
                nn.functional.cross_entropy(o[None], t[None], ignore_index=IGNORED)
                for o, t in zip(outputs, dataset.train.targets[rows], strict=True)
            ]
            gradients = torch.autograd.grad(torch.stack(losses).mean(), model.parameters)
            total += size * torch.cat([g.reshape(-1) for g in gradients])
        start = start - 0.3 * total / SIZES.sum()
    torch.testing.assert_close(vector, start, atol=1e-10, rtol=1e-9)


def test_what_stands_behind_a_texts_end_changes_nothing():
    """Other tokens where no target counts: the LSTM has not seen them at any place that counts."""
    factory, dataset = CASES["reddit"]
    ended = dataset.train.targets == IGNORED
    assert ended.any()
    tokens = dataset.train.inputs.clone()
    tokens[ended] = (tokens[ended] + 1) % WORDS
    other = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, inputs=tokens))
    for trainer in (SerialTrainer, partial(VectorizedTrainer, num_slots=2)):
        assert torch.equal(run(dataset, factory, trainer)[0], run(other, factory, trainer)[0])


def test_per_sample_values_are_pytorchs_and_skip_what_does_not_count():
    torch.manual_seed(0)
    outputs, targets = torch.randn(4, 5, 6), torch.randint(0, 5, (4, 6))
    whole = nn.functional.cross_entropy(outputs, targets, reduction="none").mean(1)
    torch.testing.assert_close(class_losses(outputs, targets), whole)
    targets[0, 2:], targets[1, 0], targets[3] = IGNORED, IGNORED, IGNORED
    expected = [
        nn.functional.cross_entropy(o[None], t[None], ignore_index=IGNORED)
        for o, t in zip(outputs, targets, strict=True)
    ]
    assert num_places(targets).tolist() == [2, 5, 6, 0]
    torch.testing.assert_close(class_losses(outputs, targets)[:3], torch.stack(expected[:3]))
    assert class_losses(outputs, targets)[3] == 0
    hits = (outputs.argmax(1) == targets).float()
    torch.testing.assert_close(correct(outputs, targets), hits.sum(1) / torch.tensor([2, 5, 6, 1]))
    outputs.requires_grad_()
    class_losses(outputs, targets).sum().backward()
    assert not outputs.grad[3].any()
    assert not outputs.grad[0, :, 2:].any()


def test_a_model_for_other_targets_is_refused():
    every = "the data has one target a sample, but the model's output for a minibatch has shape (2, 5, 3)"
    with pytest.raises(ValueError, match=re.escape(every)):
        class_losses(torch.randn(2, 5, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"the data has targets of shape \(3,\) a sample, .* choose another model"):
        class_losses(torch.randn(2, 5), torch.zeros(2, 3, dtype=torch.int64))


def test_evaluation_is_a_mean_over_places_that_count():
    factory, dataset = CASES["reddit"]
    _, _, simulation = run(dataset, factory, SerialTrainer)
    found = simulation.evaluate()
    with torch.no_grad():
        outputs = simulation.model.module.eval()(dataset.test.inputs.long())
    targets = dataset.test.targets
    counted = targets != IGNORED
    loss = nn.functional.cross_entropy(outputs, targets, ignore_index=IGNORED)  # PyTorch's mean is over all places
    assert found["test_loss"] == pytest.approx(loss.item())
    hits = (outputs.argmax(1) == targets) & counted
    assert found["test_accuracy"] == pytest.approx((hits.sum() / counted.sum()).item())
    frame = simulation.clients()
    for client, row in enumerate(frame.itertuples()):
        own = torch.from_numpy(dataset.test.rows(client))
        assert row.accuracy == pytest.approx((hits[own].sum() / counted[own].sum()).item())
        loss = nn.functional.cross_entropy(outputs[own], targets[own], ignore_index=IGNORED)
        assert row.loss == pytest.approx(loss.item())
    some = np.array([4, 1, 7])
    evaluator = Evaluator(dataset, dataset.test, simulation.model)
    assert evaluator.places(some).tolist() == counted[some].sum(1).tolist()


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bias": False}, {"num_layers": 3}])
def test_the_unrolled_lstm_is_nn_lstm(options):
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 5, **options).double()
    twin = UnrolledLSTM(lstm)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    batch = 4 if options.get("batch_first") else 6
    state = tuple(torch.randn(lstm.num_layers, batch, 5, dtype=torch.float64) for _ in range(2))
    for given in (None, state):
        found, (hidden, cell) = twin(x, given)
        expected, (last_hidden, last_cell) = lstm(x, given)
        for one, other in ((found, expected), (hidden, last_hidden), (cell, last_cell)):
            torch.testing.assert_close(one, other)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in lstm.named_parameters()]
    assert not UnrolledLSTM.replaces(nn.LSTM(3, 5, bidirectional=True))
    assert not UnrolledLSTM.replaces(nn.LSTM(3, 5, proj_size=2))
