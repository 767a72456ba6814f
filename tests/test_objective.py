"""What is minimised and measured: PyTorch's own losses, a textbook loop for each, and the same in every trainer."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fedsim as package
from fedsim.algorithms import agnostic_fedavg, fedavg, fedsam, perfedavg, qfedavg, scaffold
from fedsim.attacks import backdoor, label_flip
from fedsim.checkpoint import Checkpoint
from fedsim.config import EvaluateConfig, LocalConfig, ServerConfig
from fedsim.data.arrays import from_arrays, from_clients
from fedsim.data.partition import Dirichlet, Iid
from fedsim.models import logistic, mlp
from fedsim.objective import (
    IGNORED,
    Objective,
    binary_cross_entropy,
    class_losses,
    correct,
    cross_entropy,
    huber,
    squared_error,
)
from fedsim.score import scores
from fedsim.simulation import Simulation
from fedsim.tracking.summary import summarise
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [7, 20, 12, 1]
LOCAL = LocalConfig(learning_rate=0.05, batch_size=20, num_steps=2)  # a client's whole data in each step
SMALL = partial(mlp, hidden_sizes=[8])
VECTORIZED = partial(VectorizedTrainer, num_slots=3)


def arrays(kind: str, seed: int = 0, num_samples: int = sum(SIZES)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_samples, 6)).astype(np.float32)
    linear = x @ np.random.default_rng(9).normal(size=(6, 3))
    made = {
        "numbers": linear[:, 0] + 0.1 * rng.normal(size=num_samples),
        "several": linear + 0.1 * rng.normal(size=linear.shape),
        "labels": (linear > 0).astype(int),
        "classes": linear.argmax(1),
    }
    return x, made[kind]


def dataset_of(kind: str, objective: Objective):
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x, y = arrays(kind)
    return from_arrays(x, y, owners, test=arrays(kind, seed=1, num_samples=30), objective=objective)


def focal(outputs, targets):
    """Lin et al. 2017: (1 - p)^2 (-log p) of the class."""
    log_p = F.log_softmax(outputs, 1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return -((1 - log_p.exp()) ** 2) * log_p


# kind of targets, the objective, and PyTorch's mean of the same
KINDS = {
    "numbers": ("numbers", squared_error(), lambda o, y: F.mse_loss(o[:, 0], y)),
    "several": ("several", squared_error(), F.mse_loss),
    "huber": ("numbers", huber(0.5), lambda o, y: F.huber_loss(o[:, 0], y, delta=0.5)),
    "labels": ("labels", binary_cross_entropy(), lambda o, y: F.binary_cross_entropy_with_logits(o, y.float())),
    "smooth": ("classes", cross_entropy(label_smoothing=0.1), partial(F.cross_entropy, label_smoothing=0.1)),
    "torch's": (
        "classes",
        Objective(name="smooth", losses=nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none")),
        partial(F.cross_entropy, label_smoothing=0.2),
    ),
    "own": ("classes", Objective(name="focal", losses=focal), lambda o, y: focal(o, y).mean()),
}


def run(dataset, trainer, *, rounds=2, model=SMALL, **settings):
    server = ServerConfig(num_rounds=rounds, clients_per_round=len(SIZES), evaluate_every=1)
    settings = {"local": LOCAL, "server": server, "device": "cpu", "seed": 3} | settings
    simulation = Simulation(dataset, model, trainer=trainer, **settings)
    return simulation, list(simulation.rounds())


@pytest.mark.parametrize("name", KINDS)
def test_a_round_is_the_textbook_loop_with_pytorchs_loss(name):
    kind, objective, mean_loss = KINDS[name]
    dataset = dataset_of(kind, objective)
    model = mlp((6,), dataset.num_classes, hidden_sizes=[8])
    start = {k: v.clone() for k, v in model.state_dict().items()}
    simulation, _ = run(dataset, SerialTrainer, rounds=1, model=copy.deepcopy(model))
    total = {k: torch.zeros_like(v) for k, v in start.items()}
    for client, size in enumerate(SIZES):
        model.load_state_dict(start)
        rows = torch.from_numpy(dataset.train.rows(client))
        loader = DataLoader(TensorDataset(dataset.train.inputs[rows], dataset.train.targets[rows]), batch_size=20)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                mean_loss(model(x), y).backward()
                optimizer.step()
        for k, v in model.state_dict().items():
            total[k] += v * size / sum(SIZES)
    found = simulation.model.state_dict(simulation.server.vector)
    for k, v in total.items():
        torch.testing.assert_close(found[k], v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", [fedavg, scaffold, fedsam, perfedavg])
@pytest.mark.parametrize("name", KINDS)
def test_side_by_side_is_one_after_another(name, algorithm):
    kind, objective, _ = KINDS[name]
    dataset = dataset_of(kind, objective)
    local = LocalConfig(learning_rate=0.05, batch_size=5, num_epochs=2)
    (one, rows), (other, again) = (
        run(dataset, trainer, algorithm=algorithm(), local=local) for trainer in (SerialTrainer, VECTORIZED)
    )
    torch.testing.assert_close(other.server.vector, one.server.vector, rtol=1e-4, atol=1e-5)
    assert [row["train_loss"] for row in again] == pytest.approx([row["train_loss"] for row in rows], rel=1e-4)


def test_losses_are_pytorchs():
    torch.manual_seed(0)
    outputs, wanted = torch.randn(5, 4, 3), torch.tensor([[0, 1, 2], [3, IGNORED, 0], [1, 1, 1], [2, 0, 1], [0, 0, 3]])
    for epsilon in (0.0, 0.3):
        expected = [
            F.cross_entropy(o[None], t[None], ignore_index=IGNORED, label_smoothing=0.0)
            if epsilon == 0
            else (F.cross_entropy(o.T[t >= 0], t[t >= 0], label_smoothing=epsilon))
            for o, t in zip(outputs, wanted, strict=True)
        ]
        torch.testing.assert_close(class_losses(outputs, wanted, epsilon), torch.stack(expected))
    numbers = torch.randn(5, 2)
    torch.testing.assert_close(
        huber(0.7)(outputs[:, 0, :2], numbers).mean(), F.huber_loss(outputs[:, 0, :2], numbers, delta=0.7)
    )
    labels = (numbers > 0).to(torch.uint8)
    found = binary_cross_entropy().measure(numbers * torch.tensor([1.0, -1.0]), labels)
    assert found["accuracy"].tolist() == [0.5] * 5
    assert found["exact_match"].tolist() == [0.0] * 5


def test_bfloat16_outputs_have_a_float32_loss():
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert cross_entropy()(outputs.bfloat16(), targets).dtype == torch.float32


def test_top_k_counts_classes_among_the_largest():
    outputs = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    targets = torch.tensor([1, 0, 1])
    measured = cross_entropy(top_k=2).measure(outputs, targets)
    assert measured["top_2_accuracy"].tolist() == [1, 0, 1]
    assert measured["accuracy"].tolist() == correct(outputs, targets).tolist() == [0, 0, 1]
    assert cross_entropy(top_k=9).measure(outputs, targets)["top_9_accuracy"].tolist() == [1, 1, 1]


def test_what_is_measured_is_what_numpy_says_for_all_and_for_each_client():
    dataset = dataset_of("numbers", squared_error())
    simulation, rows = run(dataset, SerialTrainer, evaluate=EvaluateConfig())
    assert {name for name in rows[-1] if name.startswith("test_")} == {"test_loss", "test_absolute_error"}
    module = mlp((6,), 1, hidden_sizes=[8])
    module.load_state_dict(simulation.model.state_dict(simulation.server.vector))
    with torch.no_grad():
        far = (module(dataset.test.inputs)[:, 0] - dataset.test.targets).double().numpy()
        near = (module(dataset.train.inputs)[:, 0] - dataset.train.targets).double().numpy()
    assert rows[-1]["test_loss"] == pytest.approx((far**2).mean(), rel=1e-5)
    assert rows[-1]["test_absolute_error"] == pytest.approx(np.abs(far).mean(), rel=1e-5)
    clients = simulation.clients()
    assert list(clients) == ["client", "split", "samples", "loss", "absolute_error"]
    ends = np.cumsum(SIZES)
    parts = np.split(near, ends[:-1])
    assert clients["loss"].to_numpy() == pytest.approx([(part**2).mean() for part in parts], rel=1e-5)
    assert clients["absolute_error"].to_numpy() == pytest.approx([np.abs(part).mean() for part in parts], rel=1e-5)


def test_clients_with_models_of_their_own_are_measured_likewise():
    dataset = dataset_of("numbers", squared_error())
    simulation, _ = run(dataset, SerialTrainer, algorithm=perfedavg())
    assert list(simulation.clients())[3:] == ["global_loss", "global_absolute_error", "loss", "absolute_error"]


def test_without_an_accuracy_the_lowest_loss_is_best_and_ends_the_patience(tmp_path):
    """A rate so high that the loss rises: the first round's is the lowest."""
    dataset = dataset_of("numbers", squared_error())
    server = ServerConfig(num_rounds=9, clients_per_round=4, evaluate_every=1, patience=2)
    local = LocalConfig(learning_rate=0.9, batch_size=20, num_steps=1)
    rows = package.simulate(dataset, logistic, server=server, local=local, run_dir=tmp_path, seed=3, progress=False)
    losses = rows["test_loss"].tolist()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"]["test_loss"] == min(losses)
    assert summary["best"]["round"] == 1 + losses.index(min(losses))
    assert summary["stopped"] == "patience"
    assert len(losses) == 3 + losses.index(min(losses)) < 9
    assert summary["clients"]["client_loss_worst"] >= summary["clients"]["client_loss_p90"]
    with pytest.raises(ValueError, match="stop_at_accuracy: the objective squared_error measures no accuracy"):
        Simulation(dataset, logistic, server=replace(server, stop_at_accuracy=0.5))


def test_the_objective_of_a_run_comes_before_that_of_its_data(tmp_path):
    dataset = dataset_of("classes", cross_entropy())
    smooth = cross_entropy(label_smoothing=0.4)
    simulation, _ = run(dataset, SerialTrainer, objective=smooth)
    of_data, _ = run(dataset_of("classes", smooth), SerialTrainer)
    plain, _ = run(dataset, SerialTrainer)
    assert torch.equal(simulation.server.vector, of_data.server.vector)
    assert not torch.equal(simulation.server.vector, plain.server.vector)
    simulation.save(tmp_path)
    other, _ = run(dataset, SerialTrainer, objective=Objective(name="focal", losses=focal))
    with pytest.raises(ValueError, match=r"objective.name \(cross_entropy\(label_smoothing=0.4\) there, focal here\)"):
        other.restore(Checkpoint.load(tmp_path, "cpu"))


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (
            Objective(name="mine", losses=F.cross_entropy),
            r"the loss of the objective mine must be a number for each of 2",
        ),
        (
            Objective(name="mine", losses=lambda x, y: x @ y),
            r"the loss of the objective mine cannot be taken of outputs \(2, 3\) and targets \(2,\)",
        ),
        (
            Objective(name="mine", losses=class_losses, metrics={"hits": lambda x, y: (x.argmax(1) == y).sum()}),
            r"the hits of the objective mine must be a number for each",
        ),
        (
            Objective(name="mine", losses=lambda x, y: (x.argmax(1) - y).abs()),
            "the loss of the objective mine has no gradient",
        ),
        (Objective(name="mine", losses=lambda x, y: {}["y"]), r"cannot be taken of outputs .* \(KeyError: 'y'\)"),
        (squared_error(), "the objective squared_error learns numbers, as float32, but the targets are torch.int64"),
        (binary_cross_entropy(), "learns zeros and ones, one for each label, but the targets are others"),
    ],
)
@pytest.mark.parametrize("trainer", [SerialTrainer, VECTORIZED])
def test_an_objective_that_does_not_fit_is_told_in_one_line(trainer, objective, told):
    dataset = dataset_of("classes", cross_entropy())
    with pytest.raises(ValueError, match=told) as caught:
        run(dataset, trainer, objective=objective)
    assert "\n" not in str(caught.value)


MEETING = {
    "a mean over the minibatch": ("classes", lambda x, y: class_losses(x - x.mean(0), y)),
    "(B, 1) beside (B,)": ("numbers", lambda x, y: (x - y).abs().mean(1)),
}


@pytest.mark.parametrize("trainer", [SerialTrainer, VECTORIZED])
@pytest.mark.parametrize("name", MEETING)
def test_samples_that_meet_are_refused(name, trainer):
    """Also beside dropout, under which side by side there is no other check."""
    targets, losses = MEETING[name]
    meeting = dataset_of(targets, Objective(name="meeting", losses=losses, targets=targets))
    for model in (SMALL, lambda shape, size: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, size))):
        with pytest.raises(ValueError, match="the loss of the objective meeting lets samples meet"):
            run(meeting, trainer, model=model)
    usual = dataset_of(targets, {"classes": cross_entropy(), "numbers": squared_error()}[targets])
    measured = replace(usual.objective, metrics={"meeting": losses})
    with pytest.raises(ValueError, match=r"the meeting of the objective .* lets samples meet"):
        run(usual, trainer, objective=measured)


def test_labels_reach_a_loss_of_ones_own_as_numbers():
    """In bytes, 2 * 0 - 1 would be 255, and PyTorch's own losses would refuse them."""
    logistic_loss = Objective(
        name="logistic", losses=lambda x, y: F.softplus(-(2 * y - 1) * x).mean(1), targets="labels"
    )
    pytorchs = Objective(
        name="torch's",
        losses=lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none").mean(1),
        targets="labels",
    )
    expected, _ = run(dataset_of("labels", binary_cross_entropy()), SerialTrainer)
    for objective in (logistic_loss, pytorchs):
        for trainer in (SerialTrainer, VECTORIZED):
            found, _ = run(dataset_of("labels", objective), trainer)
            torch.testing.assert_close(found.server.vector, expected.server.vector, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("value", "best"), [(math.nan, 3), (0.25, 2)])
def test_a_score_that_is_no_number_is_the_worst(value, best):
    rows = [{"round": i, "test_loss": loss, "train_loss": 1.0} for i, loss in enumerate([1.0, value, 0.5], 1)]
    rows = [row | {"seconds": 1.0, "peak_memory_bytes": 1} for row in rows]
    assert summarise(rows)["best"]["round"] == best
    assert ServerConfig(patience=2, evaluate_every=1).stop(scores(rows)) is None
    assert scores([{"train_loss": 1.0}, {"test_loss": math.nan}, {"test_accuracy": 0.5, "test_loss": 9.0}]) == [
        -math.inf,
        0.5,
    ]


def test_large_losses_do_not_overflow_where_domains_are_weighed():
    x, y = arrays("numbers")
    dataset = from_arrays(x, 30 * y + 90, np.repeat(np.arange(4), SIZES), objective=squared_error())
    local = LocalConfig(learning_rate=1e-5, batch_size=20, num_epochs=1)
    _, rows = run(dataset, SerialTrainer, algorithm=agnostic_fedavg(), local=local, rounds=5)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_losses_below_zero_are_no_base_of_a_power():
    below = Objective(name="likelihood", losses=lambda x, y: (x[:, 0] - y).square() - 500, targets="numbers")
    with pytest.raises(ValueError, match="qfedavg takes powers of the clients' losses, and one is negative"):
        run(dataset_of("numbers", below), SerialTrainer, algorithm=qfedavg())


def test_what_cannot_be_an_objective():
    with pytest.raises(ValueError, match="targets are classes, numbers, labels, not 'words'"):
        Objective(name="mine", losses=focal, targets="words")
    with pytest.raises(ValueError, match="'loss' cannot be a metric's name"):
        Objective(name="mine", losses=focal, metrics={"loss": focal})
    with pytest.raises(ValueError, match="'global_hits' cannot be a metric's name"):
        Objective(name="mine", losses=focal, metrics={"global_hits": focal})
    for given in ({"losses": "focal"}, {"losses": focal, "metrics": [correct]}, {"losses": focal, "metrics": {"a": 1}}):
        with pytest.raises(ValueError, match="mine: losses is a function, and metrics are functions by name"):
            Objective(name="mine", **given)
    for given in (squared_error, F.mse_loss, "mse"):
        with pytest.raises(
            ValueError, match=r"objective must be an Objective, for example objective=squared_error\(\)"
        ):
            from_arrays([[1.0]], [0], objective=given)
        with pytest.raises(ValueError, match=r"objective must be an Objective, .*; got (squared_error|mse_loss|str)$"):
            run(dataset_of("classes", cross_entropy()), SerialTrainer, objective=given)
    for wrong in (lambda: cross_entropy(label_smoothing=1), lambda: cross_entropy(top_k=0), lambda: huber(0)):
        with pytest.raises(ValueError, match=r"objective\.\w+ must be"):
            wrong()


def test_classes_are_what_partitions_by_class_and_attacks_on_classes_need():
    x, y = arrays("numbers", num_samples=60)
    dataset = from_arrays(x, y, objective=squared_error())
    dealt = Iid(num_clients=3)(dataset, 0)
    assert dealt.objective is dataset.objective
    with pytest.raises(ValueError, match="needs one integer class label a sample"):
        Dirichlet(num_clients=3, alpha=1.0)(dataset, 0)
    for attack in (label_flip(), backdoor()):
        with pytest.raises(ValueError, match="squared_error learns no classes: choose another attack"):
            Simulation(dealt, logistic, attack=attack)


@pytest.mark.parametrize(
    ("objective", "targets", "told"),
    [
        (squared_error(), [1.0, float("nan")], "target 1 holds a number that is not a finite float32"),
        (squared_error(), [1.0, 1e300], "target 1 holds a number"),
        (squared_error(), ["a", "b"], "turn them into numbers first"),
        (binary_cross_entropy(), [[0, 1], [2, 0]], "targets are not all 0 or 1"),
        (None, [0.5, 1.0], r"learn the numbers: objective=fedsim.objective.squared_error\(\)"),
    ],
)
def test_targets_are_checked_for_what_is_learned(objective, targets, told):
    with pytest.raises(ValueError, match=told):
        from_arrays([[1.0], [2.0]], targets, objective=objective)
    with pytest.raises(ValueError, match="client ann's " + told if "holds" in told else told):
        from_clients({"ann": ([[1.0], [2.0]], targets)}, objective=objective)


def test_numbers_that_happen_to_be_whole_stay_numbers():
    dataset = from_arrays([[1.0], [2.0]], [3, 40], ["a", "b"], objective=squared_error())
    assert dataset.train.targets.dtype == torch.float32
    assert dataset.num_classes == 1
    with pytest.raises(ValueError, match=r"test targets are \(2,\), training targets \(\)"):
        from_arrays([[1.0]], [1.0], test=([[1.0]], [[1.0, 2.0]]), objective=squared_error())


@pytest.fixture
def table(tmp_path):
    """A file in LIBSVM's format with numbers, and one with labels."""
    x, y = arrays("numbers", num_samples=80)
    _, labels = arrays("labels", num_samples=80)
    rows = [" ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(row)) for row in x]
    (tmp_path / "numbers").write_text("".join(f"{t:.6f} {row}\n" for t, row in zip(y, rows, strict=True)))
    several = [",".join(str(i) for i in np.flatnonzero(row)) for row in labels]
    (tmp_path / "labels").write_text("".join(f"{t} {row}\n" for t, row in zip(several, rows, strict=True)))
    return tmp_path


WORKERS = ["transport=torch_distributed", "transport.num_workers=2"]
RUN = ["data=libsvm", "partition=iid", "partition.num_clients=5", "model=logistic", "local.learning_rate=0.05"]
RUN += ["server.num_rounds=4", "server.clients_per_round=5", "server.evaluate_every=2"]


@pytest.mark.parametrize("objective", [None, "huber", "squared_error"])
def test_a_regression_from_the_command_line_tells_errors_and_no_accuracy(fedsim, table, objective):
    chosen = [] if objective is None else [f"objective={objective}"]
    done = fedsim(*RUN, f"data.train={table}/numbers", "data.targets=numbers", *chosen)
    assert done.code == 0, done.err
    summary = json.loads((done.directory / "summary.json").read_text())
    assert summary["final"]["test_absolute_error"] > 0
    assert summary["best"]["round"] == 4
    assert "accuracy" not in json.dumps(summary)
    assert "test loss" in done.err
    assert "absolute error" in done.err


def test_labels_from_the_command_line_are_many_right_ones(fedsim, table):
    done = fedsim(*RUN, f"data.train={table}/labels", "data.targets=labels", "local.learning_rate=0.5")
    assert done.code == 0, done.err
    final = json.loads((done.directory / "summary.json").read_text())["final"]
    assert final["test_accuracy"] > 0.7  # of labels that are linear, half of them ones
    assert final["test_exact_match"] < final["test_accuracy"]


def test_workers_minimise_the_same(fedsim, table, tmp_path):
    arguments = [*RUN, f"data.train={table}/numbers", "data.targets=numbers", "objective=huber", "trainer=serial"]
    here = fedsim(*arguments)
    there = fedsim(*arguments, *WORKERS, directory=tmp_path / "there")
    assert (here.code, there.code) == (0, 0), here.err + there.err
    assert (here.directory / "model.safetensors").read_bytes() == (there.directory / "model.safetensors").read_bytes()


def test_smoothing_and_top_k_from_the_command_line(fedsim, tmp_path):
    smooth = ["objective=cross_entropy", "objective.label_smoothing=0.1", "objective.top_k=5"]
    done = fedsim("+experiment=debug", "server.num_rounds=2", *smooth)
    assert done.code == 0, done.err
    final = json.loads((done.directory / "summary.json").read_text())["final"]
    assert final["test_top_5_accuracy"] >= final["test_accuracy"]
    assert "top 5 accuracy" in done.err
    wrong = fedsim("+experiment=debug", "objective=squared_error", directory=tmp_path / "wrong")
    assert wrong.code == 1
    assert "learns numbers, as float32, but the targets are torch.int64" in wrong.err.splitlines()[-1]
    other = fedsim("+experiment=debug", "objective=cross_entrpy")
    assert other.code == 1
    assert "did you mean cross_entropy" in other.err
