"""Every algorithm of conf/algorithm: alike in every trainer and in any order of clients, and resumed to the bit.

The model has BatchNorm, clients have momentum, partial minibatches and uneven sizes, and each trains more than once.
"""

import dataclasses
import functools
from functools import partial

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

import fedsim.transport.inprocess as inprocess
from fedsim.checkpoint import Checkpoint
from fedsim.cli import conf_dir
from fedsim.config import LocalConfig, ServerConfig
from fedsim.simulation import Simulation
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

NAMES = sorted(path.stem for path in (conf_dir() / "algorithm").glob("*.yaml"))
# Settings beside the defaults that take another way through the code.
VARIANTS = {
    "fedprox adaptive": ("fedprox", {"adaptive": True}),
    "scaffold option 1": ("scaffold", {"option": 1, "weighted": True}),
    "perfedavg hessian-free": ("perfedavg", {"hessian_free": True}),
    "fednova proximal": ("fednova", {"proximal_weight": 0.1}),
    "ifca of three": ("ifca", {"num_clusters": 3}),
}
SIZES = [7, 12, 10, 1, 16, 8, 18]
LOCAL = LocalConfig(batch_size=5, num_epochs=2, learning_rate=0.05, momentum=0.5, weight_decay=1e-3)
# One trace serves all of a dtype, for the model and the sizes of minibatches are the same: it is most of a small run's
# time.
TRACES = {torch.float64: {}, torch.float32: {}}
CLOSE = {torch.float64: {"atol": 1e-9, "rtol": 1e-8}, torch.float32: {"atol": 1e-5, "rtol": 1e-5}}


class Small(nn.Module):
    """Two layers with BatchNorm between them, whose minibatches of one sample still have a variance over places."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.body(x.view(len(x), -1, 4)).transpose(1, 2)
        return self.head(self.norm(x).relu().mean(2))


def algorithm(case):
    name, options = VARIANTS.get(case, (case, {}))
    return instantiate(OmegaConf.load(conf_dir() / "algorithm" / f"{name}.yaml"), **options)


# Those without rounds have another server, and tests of their own.
CASES = [case for case in (*NAMES, *VARIANTS) if algorithm(case).asynchronous is None]


@pytest.fixture
def build(make_dataset):
    dataset = make_dataset(SIZES, seed=4)

    def make(case, trainer=SerialTrainer, dtype=torch.float64, device="cpu"):
        train = dataclasses.replace(dataset.train, inputs=dataset.train.inputs.to(dtype))
        simulation = Simulation(
            # the clients are also evaluated on their own samples
            dataclasses.replace(dataset, train=train, test=None),
            lambda shape, classes: Small(shape, classes).to(dtype),
            local=LOCAL,
            algorithm=algorithm(case),
            server=ServerConfig(num_rounds=3, clients_per_round=5, evaluate_every=0),
            trainer=trainer,
            seed=2,
            device=device,
        )
        if isinstance(simulation.trainer, VectorizedTrainer):
            simulation.trainer.functions = TRACES[dtype]
        return simulation

    return make


def train(simulation, rounds=3):
    return [simulation.server.run_round()["train_loss"] for _ in range(rounds)]


def everything(simulation):
    """All that a run keeps, by name."""
    kept = simulation.trainer.clients
    state = {"vector": simulation.server.vector, **simulation.server.state}
    if kept is not None:
        state |= {"written": torch.from_numpy(kept.written), "rows": kept.read(kept.written)}
    return state


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_clients_side_by_side_are_clients_one_by_one(build, case, dtype):
    serial = build(case, dtype=dtype)
    losses = train(serial)
    assert serial.server.vector.isfinite().all()
    expected = everything(serial)
    other = build(case, partial(VectorizedTrainer, num_slots=3), dtype)
    assert train(other) == pytest.approx(losses, rel=1e-9 if dtype == torch.float64 else 1e-5)
    found = everything(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **CLOSE[dtype], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.gpu
@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=3)], ids=["serial", "slots"])
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_ends_where_the_cpu_does(build, case, trainer):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = []
    for device in ("cpu", "cuda"):
        simulation = build(case, trainer, device=device)
        simulation.trainer.functions = {}  # a trace is of one device
        train(simulation)
        found.append(simulation.server.vector.cpu())
    torch.testing.assert_close(*found, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_resume_and_order_change_no_bit(build, case, tmp_path, monkeypatch):
    whole, first, second = build(case), build(case), build(case)
    train(whole)
    train(first, 2)
    for simulation in (first, second):
        for state in simulation.client_states.values():
            state.locate(tmp_path)
    first.save(tmp_path, {})
    second.restore(Checkpoint.load(tmp_path, "cpu"), {})
    train(second, 1)
    assert same(everything(whole), everything(second))

    real = inprocess.make_plan

    def backwards(*args, **kwargs):
        plan = real(*args, **kwargs)
        return dataclasses.replace(
            plan, **{n: getattr(plan, n)[::-1].copy() for n in ("clients", "weights", "slot", "start", "steps")}
        )

    monkeypatch.setattr(inprocess, "make_plan", backwards)
    reversed_ = build(case)
    train(reversed_)
    assert same(everything(whole), everything(reversed_))


@functools.cache
def _personalised(case):
    return algorithm(case).personalised


@pytest.mark.parametrize("case", [c for c in CASES if _personalised(c)])
def test_clients_csv_has_the_clients_own_models_and_evaluating_them_changes_nothing(build, case):
    simulation = build(case)
    train(simulation)
    before = {name: tensor.clone() for name, tensor in everything(simulation).items()}
    clients = simulation.clients()
    assert same(everything(simulation), before)
    assert {"loss", "accuracy", "global_loss", "global_accuracy"} <= set(clients.columns)
    assert len(clients) == len(SIZES)
    assert np.isfinite(clients["loss"]).all()
    assert (clients["loss"] != clients["global_loss"]).any()
    train(simulation, 1)
    unseen = build(case)
    train(unseen, 4)
    assert same(everything(simulation), everything(unseen))
