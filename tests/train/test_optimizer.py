"""Local optimizers are torch.optim's, for every client by itself; schedules are their formulas."""

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.config import LocalConfig, ScheduleConfig, ServerConfig
from fedsim.models import logistic
from fedsim.simulation import Simulation
from fedsim.train.plan import make_plan
from fedsim.train.serial import SerialTrainer
from fedsim.train.vectorized import VectorizedTrainer

SIZES = [7, 23, 1, 16]
RULES = {
    "adam": (dict(weight_decay=1e-2), partial(torch.optim.Adam, weight_decay=1e-2)),
    "adamw": (
        dict(weight_decay=0.1, beta1=0.8, beta2=0.95, epsilon=1e-3),
        partial(torch.optim.AdamW, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-3),
    ),
    "adagrad": (dict(weight_decay=1e-2, epsilon=1e-10), partial(torch.optim.Adagrad, weight_decay=1e-2)),
}


@pytest.mark.parametrize("trainer", [SerialTrainer, partial(VectorizedTrainer, num_slots=2)], ids=["serial", "slots"])
@pytest.mark.parametrize("rule", RULES)
def test_a_round_is_torch_optims(make_dataset, rule, trainer):
    """Two slots and four clients of unequal length: a slot's second client starts from zero moments."""
    dataset = make_dataset(SIZES)
    dataset = dataclasses.replace(
        dataset, train=dataclasses.replace(dataset.train, inputs=dataset.train.inputs.double()), test=None
    )
    options, optimizer = RULES[rule]
    local = LocalConfig(
        optimizer=rule, batch_size=5, num_epochs=2, learning_rate=0.03, max_gradient_norm=0.7, **options
    )
    simulation = Simulation(
        dataset,
        lambda s, c: logistic(s, c).double(),
        local=local,
        server=ServerConfig(num_rounds=1, clients_per_round=4),
        trainer=trainer,
        device="cpu",
    )
    start, total = copy.deepcopy(simulation.model.module), sum(SIZES)
    before, expected = simulation.server.vector.clone(), 0.0
    for client, size in enumerate(SIZES):
        module = copy.deepcopy(start)
        rule_of_client = optimizer(module.parameters(), lr=0.03)
        plan = make_plan(dataset.train, np.array([client]), local, seed=0, round=1)
        for rows, count in zip(plan.rows[:, 0], plan.counts[:, 0], strict=True):
            kept = torch.from_numpy(rows[:count])
            rule_of_client.zero_grad()
            nn.functional.cross_entropy(module(dataset.train.inputs[kept]), dataset.train.targets[kept]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.7)
            rule_of_client.step()
        expected = expected + size / total * torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    simulation.server.run_round()
    torch.testing.assert_close(simulation.server.vector, expected, atol=1e-10, rtol=1e-8)
    assert (simulation.server.vector - before).abs().max() > 1e-2


def test_schedules_are_their_formulas():
    rounds = range(1, 9)
    assert [ScheduleConfig().at(r) for r in rounds] == [1.0] * 8
    assert [ScheduleConfig(kind="step", factor=0.5, every=3).at(r) for r in rounds] == pytest.approx(
        [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    )
    # half a cosine over 4 rounds: 1, 0.1 + 0.9 (1 + cos 45 degrees) / 2, the middle, ..., 0.1 and there it stays
    cosine = [ScheduleConfig(kind="cosine", factor=0.1, num_rounds=4).at(r) for r in rounds]
    assert cosine == pytest.approx([1, 0.86819805, 0.55, 0.23180195, 0.1, 0.1, 0.1, 0.1])
    assert [ScheduleConfig(kind="inverse", factor=1.0).at(r) for r in rounds][:4] == pytest.approx(
        [1, 1 / 2, 1 / 3, 1 / 4]
    )
    warm = ScheduleConfig(kind="inverse", factor=1.0, warmup_rounds=3)
    assert [warm.at(r) for r in rounds][:5] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1 / 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScheduleConfig(kind="cosin"), "schedule.kind='cosin' does not exist; choose one of constant, step"),
        (lambda: LocalConfig(optimizer="sdg"), "local.optimizer='sdg' does not exist; choose one of sgd, adam"),
        (lambda: LocalConfig(optimizer="adam", momentum=0.9), "are of local.optimizer=sgd, not of adam"),
        (lambda: LocalConfig(beta1=1.0), r"local.beta1 must be in \[0, 1\)"),
    ],
)
def test_a_mistake_names_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()
