"""The vectorized trainer gives what the serial one gives, for every model, rule and number of slots.

In float64 the two agree to rounding. In float32 they agree to 1e-5, unless a ReLU or a maximum sits so near to a tie
that rounding decides it: seeds here are such that none does.
"""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

import fedsim.train.gradient as gradient_module
import fedsim.train.vectorized as vectorized_module
from fedsim.algorithms import fedprox
from fedsim.config import LocalConfig, ServerConfig
from fedsim.models import cifar_cnn, convnet2, leaf_cnn, logistic, mlp
from fedsim.simulation import Simulation
from fedsim.train.batched import (
    FactoredLinear,
    MaskedBatchNorm,
    PatchConv2d,
    batched_twin,
    factorable,
    first_convolutions,
)
from fedsim.train.calibrate import Auto
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [7, 23, 10, 1, 31, 16, 40, 3, 12]
PLAIN = LocalConfig(batch_size=8, learning_rate=0.05)
RICH = LocalConfig(
    batch_size=5,
    num_epochs=2,
    learning_rate=0.05,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-2,
    max_gradient_norm=0.5,
)
STEPS = LocalConfig(batch_size=6, num_steps=7, learning_rate=0.1, momentum=0.5, weight_decay=1e-3)


class Recurrent(nn.Module):
    """An LSTM over the rows of an image, with layer normalisation."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.lstm = nn.LSTM(input_shape[-1], 12, num_layers=2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.lstm(x.squeeze(1))[0][:, -1]))


class Attentive(nn.Module):
    """One transformer layer over the rows of an image, with group normalisation in front."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.norm = nn.GroupNorm(1, input_shape[0])
        self.layer = nn.TransformerEncoderLayer(input_shape[-1], 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(input_shape[-1], num_classes)

    def forward(self, x):
        return self.head(self.layer(self.norm(x).squeeze(1)).mean(1))


MODELS = {
    "logistic": logistic,
    "mlp": partial(mlp, hidden_sizes=(32, 16)),
    "cnn": partial(leaf_cnn, hidden_size=64),
    "batch_norm": partial(convnet2, hidden_size=32),
    "cifar_cnn": partial(cifar_cnn, hidden_size=16),
    "lstm": Recurrent,
    "attention": Attentive,
}


@pytest.fixture
def double(make_dataset):
    """A dataset of small images in float64."""
    dataset = make_dataset(SIZES, shape=(1, 8, 8))

    def convert(split):
        return dataclasses.replace(split, inputs=split.inputs.double())

    return dataclasses.replace(dataset, train=convert(dataset.train), test=convert(dataset.test))


def run(dataset, factory, local, trainer, *, algorithm=None, rounds=5, clients=7):
    simulation = Simulation(
        dataset,
        lambda shape, classes: factory(shape, classes).to(dataset.train.inputs.dtype),
        local=local,
        algorithm=algorithm,
        server=ServerConfig(num_rounds=rounds, clients_per_round=clients, evaluate_every=0),
        trainer=trainer,
        device="cpu",
    )
    metrics = [simulation.server.run_round() for _ in range(rounds)]
    return simulation.server.vector, [m["train_loss"] for m in metrics], simulation


EVERY_RULE = [
    (name, local, slots) for name in ("logistic", "batch_norm") for local in (PLAIN, STEPS) for slots in (1, 16)
]


@pytest.mark.parametrize(("name", "local", "num_slots"), [*((name, RICH, 3) for name in MODELS), *EVERY_RULE])
def test_equals_the_serial_trainer(double, name, local, num_slots, caplog):
    expected, losses, _ = run(double, MODELS[name], local, SerialTrainer, rounds=3)
    trainer = partial(VectorizedTrainer, num_slots=num_slots)
    vector, found, _ = run(double, MODELS[name], local, trainer, rounds=3)
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
    assert found == pytest.approx(losses, rel=1e-9)
    assert not caplog.records, "the step was not traced"


@pytest.mark.parametrize("local", [PLAIN, RICH, STEPS], ids=["plain", "rich", "steps"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_factored_weights_equal_whole_ones(double, name, local, monkeypatch):
    wide = {"mlp": partial(mlp, hidden_sizes=(600, 400)), "cnn": partial(leaf_cnn, hidden_size=512)}[name]
    monkeypatch.setattr(vectorized_module, "_MIN_FACTORED", 1 << 14)
    expected, losses, _ = run(double, wide, local, SerialTrainer, rounds=2)
    for num_slots in (3, 16):
        vector, found, simulation = run(double, wide, local, partial(VectorizedTrainer, num_slots=num_slots), rounds=2)
        assert all(simulation.trainer.functions), "nothing was factored"
        torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
        assert found == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_float32_stays_within_1e_5(make_dataset, name):
    dataset = make_dataset(SIZES, shape=(1, 8, 8), seed=1)
    expected, _, _ = run(dataset, MODELS[name], PLAIN, SerialTrainer)
    vector, _, _ = run(dataset, MODELS[name], PLAIN, partial(VectorizedTrainer, num_slots=4))
    torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)


def test_an_algorithms_gradient_sees_whole_vectors(double):
    expected, _, _ = run(double, MODELS["cnn"], RICH, SerialTrainer, algorithm=fedprox(0.3))
    vector, _, _ = run(double, MODELS["cnn"], RICH, partial(VectorizedTrainer, num_slots=4), algorithm=fedprox(0.3))
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)


def test_one_trace_serves_every_number_of_slots(double, monkeypatch):
    traced = []
    real = gradient_module.trace
    monkeypatch.setattr(gradient_module, "trace", lambda *a: traced.append(1) or real(*a))
    run(double, MODELS["cnn"], PLAIN, partial(VectorizedTrainer, num_slots=5), rounds=2)
    assert len(traced) == 1


def test_minibatches_may_change_their_size_from_round_to_round(double):
    local = LocalConfig(batch_size=None, learning_rate=0.05)
    expected, _, _ = run(double, logistic, local, SerialTrainer, clients=2)
    vector, _, simulation = run(double, logistic, local, partial(VectorizedTrainer, num_slots=5), clients=2)
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
    assert len(simulation.trainer.functions) == 1, "one trace serves every size"


def test_a_step_that_cannot_be_traced_runs_untraced_with_a_warning(double, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("no trace today")

    expected, _, _ = run(double, logistic, PLAIN, SerialTrainer)
    monkeypatch.setattr(gradient_module, "trace", broken)
    vector, _, _ = run(double, logistic, PLAIN, partial(VectorizedTrainer, num_slots=5))
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
    assert "could not be traced and runs slower (no trace today)" in caplog.text


class DataDependent(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.linear(x.flatten(1))
        return x * 2 if x.sum().item() > 0 else x


def test_a_model_that_cannot_be_batched_is_refused_with_the_alternative(double):
    with pytest.raises(ValueError, match=r"cannot train DataDependent side by side .*use trainer=serial"):
        run(double, DataDependent, PLAIN, partial(VectorizedTrainer, num_slots=3))


class FunctionalDropout(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training))


@pytest.mark.parametrize("factory", [partial(convnet2, hidden_size=16, dropout=0.5), FunctionalDropout])
def test_dropout_is_reproducible_for_a_number_of_slots(double, factory, caplog):
    one, _, _ = run(double, factory, PLAIN, partial(VectorizedTrainer, num_slots=4), rounds=2)
    torch.manual_seed(5)
    two, _, _ = run(double, factory, PLAIN, partial(VectorizedTrainer, num_slots=4), rounds=2)
    assert torch.equal(one, two)
    assert not caplog.records, "the step was not traced"


def test_a_client_that_is_not_finite_is_named(make_dataset):
    dataset = make_dataset([20, 20, 20])
    with torch.no_grad():
        dataset.train.inputs[25] = float("nan")
    simulation = Simulation(
        dataset,
        logistic,
        server=ServerConfig(num_rounds=1, clients_per_round=3),
        trainer=partial(VectorizedTrainer, num_slots=2),
        device="cpu",
    )
    with pytest.raises(ValueError, match=r"round 1: the loss of client 1 \(client_1\) is not finite"):
        simulation.server.run_round()


def test_masked_batch_norm_is_batch_norm_on_the_rows_that_count():
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    twin = MaskedBatchNorm(norm)
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    twin.mask = torch.tensor([1, 1, 1, 1, 0, 0], dtype=torch.float64)
    found = twin(x)[:4]
    torch.testing.assert_close(found, norm(x[:4]))
    torch.testing.assert_close(twin.updated["running_mean"], norm.running_mean)
    torch.testing.assert_close(twin.updated["running_var"], norm.running_var)
    twin.mask = torch.zeros(6, dtype=torch.float64)
    twin(x)
    torch.testing.assert_close(twin.updated["running_var"], norm.running_var)


class Normalised(nn.Module):
    """BatchNorm with one value a channel for each sample, called twice."""

    def __init__(self, input_shape, num_classes, tracked=True):
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, num_classes)
        self.norm = nn.BatchNorm1d(8, track_running_stats=tracked)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.head(self.norm(x + 0.1 * self.norm(x).relu()))


@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norm_takes_a_minibatch_of_one_sample(double, tracked, caplog):
    """Clients of 1, 31 and 16 samples in batches of 5 end with a minibatch of one."""
    factory = partial(Normalised, tracked=tracked)
    expected, losses, _ = run(double, factory, RICH, SerialTrainer, rounds=3)
    vector, found, _ = run(double, factory, RICH, partial(VectorizedTrainer, num_slots=3), rounds=3)
    torch.testing.assert_close(vector, expected, atol=1e-9, rtol=1e-8)
    assert found == pytest.approx(losses, rel=1e-9)
    assert not caplog.records, "the step was not traced"


def test_only_plain_linear_layers_of_their_own_are_factored():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.sequence, self.twice = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.tied, self.small = nn.Linear(8, 8), nn.Linear(8, 2)
            self.again = nn.Linear(8, 8)
            self.again.weight = self.tied.weight

        def forward(self, x):
            x = self.twice(self.twice(self.plain(x)))
            x = self.sequence(x.unsqueeze(1)).squeeze(1)
            return self.small(self.again(self.tied(x)))

    model = Mixed()
    assert factorable(model, torch.randn(2, 8), 64) == {"plain": (8, 8)}
    twin = batched_twin(model, {"plain"})
    assert isinstance(twin.plain, FactoredLinear)
    assert twin.small.weight is model.small.weight, "parameters are shared with the model, not copied"
    assert isinstance(model.plain, nn.Linear)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 1, 2), ((3, 2), (2, 1), (0, 1)), (1, 3, 0)])
def test_patches_give_the_convolution_and_its_gradients(kernel, stride, padding, bias):
    conv = nn.Conv2d(2, 4, kernel, stride, padding, bias=bias).double()
    twin, x = PatchConv2d(conv), torch.randn(3, 2, 9, 8, dtype=torch.float64)
    assert PatchConv2d.replaces(conv)
    expected, found = conv(x), twin(x)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad((y * weight).sum(), list(conv.parameters())) for y in (expected, found)), strict=True
    ):
        torch.testing.assert_close(other, one)


def test_only_convolutions_that_see_the_samples_become_patches():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.aside, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)
            self.wide, self.grouped = nn.Conv2d(1, 3, 9, padding=4), nn.Conv2d(1, 3, 3, groups=1, dilation=2)

        def forward(self, x):
            y = self.second(self.first(x) + self.aside(x))
            return y + self.wide(x)[..., 2:-2, 2:-2] + self.grouped(x)

    assert first_convolutions(Model(), torch.randn(2, 1, 12, 12)) == {"first", "aside"}


class _Asks(nn.Module):
    """Normalises if there are several samples, as many write it for a last minibatch of one."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], num_classes)

    def forward(self, x):
        return self.head(self.norm(x) if len(x) > 1 else x)


class _Meets(nn.Module):
    """Samples see their mean, outside BatchNorm."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.head = nn.Linear(shape[0], num_classes)

    def forward(self, x):
        return self.head(x - x.mean(0))


@pytest.mark.parametrize("model", [_Asks, _Meets])
def test_a_model_whose_samples_meet_is_refused_and_auto_trains_it_serially(make_dataset, model):
    """Minibatches are filled up, and what fills them would be seen: the result would be another, with no error."""
    dataset = make_dataset(SIZES)
    settings = {"server": ServerConfig(num_rounds=1, clients_per_round=3), "device": "cpu"}
    simulation = Simulation(dataset, model, trainer=partial(VectorizedTrainer, num_slots=2), **settings)
    with pytest.raises(ValueError, match=f"{model.__name__} lets samples meet outside BatchNorm.*use trainer=serial"):
        next(iter(simulation.rounds()))
    assert Simulation(dataset, model, trainer=Auto(cache=False), **settings).choice.num_slots == 0


class _Moody(nn.Module):
    """Does with minibatches of 21 or more what it does not do with smaller ones."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.head = nn.Linear(shape[0], num_classes)

    def forward(self, x):
        return self.head(x * 2 if x.shape[0] > 20 else x)


def test_a_trace_is_tried_at_the_minibatch_of_the_run(make_dataset, caplog):
    """The trace, made at other sizes, does not know what the model does at this one: the step itself runs."""
    dataset = make_dataset([30, 30])
    local = LocalConfig(batch_size=30)

    def final(trainer):
        server = ServerConfig(num_rounds=2, clients_per_round=2)
        simulation = Simulation(dataset, _Moody, local=local, server=server, trainer=trainer, device="cpu")
        for _ in simulation.rounds():
            pass
        return simulation.server.vector

    torch.testing.assert_close(final(partial(VectorizedTrainer, num_slots=2)), final(SerialTrainer))
    assert "differs from the step itself" in caplog.text
