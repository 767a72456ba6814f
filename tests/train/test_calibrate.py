"""trainer=auto chooses among what it has measured, fits the budget, costs little, and leaves no trace."""

import logging
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import fedsim.train.calibrate as calibrate_module
from fedsim.algorithms import fedavg
from fedsim.config import CheckpointConfig, LocalConfig, ServerConfig
from fedsim.models import leaf_cnn, logistic
from fedsim.recording import record
from fedsim.simulation import Simulation
from fedsim.train.calibrate import Auto
from fedsim.train.choice import Choice
from fedsim.train.graphs import CannotCapture
from fedsim.train.plan import busy_slots
from fedsim.train.serial import SerialTrainer
from fedsim.train.training import Training
from fedsim.train.trial import Trial, seconds_elsewhere
from fedsim.train.vectorized import VectorizedTrainer
from fedsim.vector import FlatModel

SIZES = [40, 23, 31, 17, 60, 12, 28, 35]
LOCAL = LocalConfig(batch_size=5, learning_rate=0.05)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def simulation(dataset, trainer, *, rounds=100_000, model=logistic):
    return Simulation(
        dataset,
        model,
        local=LOCAL,
        server=ServerConfig(num_rounds=rounds, clients_per_round=8, evaluate_every=0),
        trainer=trainer,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("seconds", "expected", "measured"),
    [
        ({0: 1.0, 4: 0.5, 8: 0.3}, 8, [0, 4, 8]),
        ({0: 1.0, 4: 3.0, 8: 2.0}, 0, [0, 4, 8]),
        ({0: 1.0, 4: 0.2, 8: 0.3}, 4, [0, 4, 8]),
    ],
)
def test_a_long_run_measures_and_takes_the_fastest(make_dataset, monkeypatch, seconds, expected, measured):
    seen = []

    def round_seconds(self, num_slots, num_threads):
        seen.append(num_slots)
        return seconds[num_slots] * (1 if num_threads == threads else 2)

    threads = torch.get_num_threads()
    monkeypatch.setattr(Trial, "round_seconds", round_seconds)
    chosen = simulation(make_dataset(SIZES), Auto()).choice
    assert (chosen.num_slots, chosen.num_threads) == (expected, threads)
    assert sorted(set(seen)) == measured
    assert {row["trainer"] for row in chosen.table} == {f"vectorized-{n}" if n else "serial" for n in measured}


def test_a_trial_without_memory_is_not_chosen_and_other_errors_are_raised(make_dataset, monkeypatch):
    raised = torch.OutOfMemoryError("CUDA out of memory")

    def round_seconds(self, num_slots, num_threads):
        if num_slots == 8:
            raise raised
        return 2.0 - num_slots / 4

    monkeypatch.setattr(Trial, "round_seconds", round_seconds)
    assert simulation(make_dataset(SIZES), Auto()).choice.num_slots == 4
    raised = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        simulation(make_dataset(SIZES), Auto(cache=False))


def test_a_short_run_is_not_worth_measuring(make_dataset):
    found = simulation(make_dataset(SIZES), Auto(), rounds=1)
    assert (found.choice.num_slots, len(found.choice.table)) == (0, 1)
    assert isinstance(found.trainer, SerialTrainer)


def test_a_choice_is_remembered_for_the_same_model_and_shape_only(make_dataset, monkeypatch):
    monkeypatch.setattr(calibrate_module, "_ELSEWHERE", 1e9)  # any machine is free enough
    first = simulation(make_dataset(SIZES), Auto()).choice
    second = simulation(make_dataset(SIZES), Auto()).choice
    other = simulation(make_dataset(SIZES, shape=(9,)), Auto()).choice
    assert second.reason.startswith("measured before")
    assert (second.num_slots, second.table) == (first.num_slots, first.table)
    assert not other.reason.startswith("measured before")
    assert not simulation(make_dataset(SIZES), Auto(cache=False)).choice.reason.startswith("measured before")


def test_a_choice_made_on_a_busy_machine_is_told_and_not_remembered(make_dataset, monkeypatch, caplog):
    monkeypatch.setattr(calibrate_module, "_SHORT", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(calibrate_module, "_ELSEWHERE", -1e9)  # no machine is free enough
        caplog.clear()
        assert simulation(make_dataset(SIZES), Auto()).choice.disturbed
        assert "its choice may be poor, and is not remembered: set trainer=vectorized" in caplog.text
    monkeypatch.setattr(calibrate_module, "_ELSEWHERE", 1e9)  # any is
    assert not simulation(make_dataset(SIZES), Auto()).choice.reason.startswith("measured before")
    assert simulation(make_dataset(SIZES), Auto()).choice.reason.startswith("measured before")


def test_the_trial_leaves_no_trace(make_dataset):
    dataset = make_dataset(SIZES)
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    plain = simulation(dataset, SerialTrainer)
    plain.server.run_round()
    torch.manual_seed(5)
    auto = simulation(dataset, Auto(cache=False))
    torch.testing.assert_close(torch.rand(3), expected_draw, rtol=0, atol=0)
    torch.testing.assert_close(auto.model.vector, auto.server.vector, rtol=0, atol=0)
    auto.server.run_round()
    torch.testing.assert_close(auto.server.vector, plain.server.vector, rtol=0, atol=1e-6)


def test_the_budget_bounds_the_slots_and_refuses_what_cannot_fit(make_dataset):
    dataset = make_dataset(SIZES, shape=(1, 8, 8))

    def model(shape, classes):
        return leaf_cnn(shape, classes, hidden_size=64)

    flat = FlatModel(model(dataset.input_shape, dataset.num_classes), torch.device("cpu"))
    training = Training(dataset=dataset, model=flat, algorithm=fedavg(), local=LOCAL)
    trial = Trial(training, np.arange(8), flat.vector.clone(), 256.0)
    budget = (trial.footprint(4).extra + trial.footprint(8).extra) // 2
    assert trial.footprint(0).extra < budget
    patient = Auto(cache=False, memory_budget=budget, max_seconds=60.0)  # the budget ends it, and not the time
    bounded = simulation(dataset, patient, model=model).choice
    assert {row["trainer"] for row in bounded.table} == {"serial", "vectorized-4"}
    with pytest.raises(ValueError, match=r"lower local.batch_size.*memory_budget"):
        simulation(dataset, Auto(cache=False, memory_budget=1000), model=model)
    with pytest.raises(ValueError, match="memory_budget must be"):
        simulation(dataset, Auto(cache=False, memory_budget=1.5), model=model)


def test_a_resumed_run_goes_on_with_the_trainer_that_it_was_begun_with(make_dataset, tmp_path, monkeypatch):
    dataset = make_dataset(SIZES)

    def choose(num_slots):
        monkeypatch.setattr(Auto, "choose", lambda *a, **k: Choice(num_slots=num_slots, num_threads=1, reason="test"))

    choose(3)
    record(simulation(dataset, Auto(), rounds=2), tmp_path / "run")
    choose(0)
    resumed = simulation(dataset, Auto(), rounds=4)
    assert isinstance(resumed.trainer, SerialTrainer)
    summary = record(resumed, tmp_path / "run", checkpoint=CheckpointConfig(resume=str(tmp_path / "run")))
    assert isinstance(resumed.trainer, VectorizedTrainer)
    assert summary["num_slots"] == 3
    assert summary["rounds"] == 4


def test_busy_slots_are_those_of_the_schedule():
    # two slots, longest first: 5 | 3 then 1 then 1
    assert busy_slots(np.array([5, 3, 1, 1]), 2).tolist() == [2, 2, 2, 2, 2]
    assert busy_slots(np.array([5, 3]), 4).tolist() == [2, 2, 2, 1, 1]


def test_a_model_that_cannot_be_batched_is_trained_serially(make_dataset, caplog):
    class Branching(torch.nn.Module):
        def __init__(self, shape, classes):
            super().__init__()
            self.head = torch.nn.Linear(shape[0], classes)

        def forward(self, x):
            return self.head(x) if x.sum() > 0 else self.head(2 * x)

    with caplog.at_level(logging.INFO):
        found = simulation(make_dataset(SIZES), Auto(cache=False), model=Branching)
    assert found.choice.num_slots == 0
    assert "cannot train Branching side by side" in caplog.text


def test_a_step_that_cannot_be_captured_ends_the_trial(make_dataset, monkeypatch):
    """What a capture leaves that was broken off is not certain: nothing is measured, or trained, after it."""

    def broken(self, num_slots, num_threads):
        raise CannotCapture("a step of this model cannot be captured as a CUDA graph")

    monkeypatch.setattr(Trial, "round_seconds", broken)
    with pytest.raises(CannotCapture):
        simulation(make_dataset(SIZES), Auto(cache=False))


def test_a_choice_keeps_the_settings_of_its_trainers(make_dataset, monkeypatch):
    """Also where the fastest is the serial trainer, as it is here with one slot to compare with."""
    times = {0: 1.0, 1: 2.0}
    monkeypatch.setattr(Trial, "round_seconds", lambda self, n, threads: times[n])
    run = simulation(make_dataset(SIZES), Auto(cache=False, precision="bf16", cuda_graphs=False, max_slots=1))
    assert isinstance(run.trainer, SerialTrainer)
    assert run.choice.precision == run.trainer.precision == "bf16"


def test_prediction_of_a_kind_grows_with_the_slots_alone(make_dataset):
    dataset = make_dataset(SIZES)
    model = FlatModel(logistic(dataset.input_shape, dataset.num_classes), torch.device("cpu"))
    cohort = np.arange(8)
    training = Training(dataset=dataset, model=model, algorithm=fedavg(), local=LOCAL)
    trial = Trial(training, cohort, model.vector.clone(), 256.0)
    needs = [trial.footprint(n) for n in (1, 4, 8)]
    assert needs[2].extra - needs[1].extra == 4 * needs[0].slot


def test_seconds_elsewhere_are_what_is_neither_idle_nor_ours(monkeypatch):
    times = {"user": 10.0, "nice": 1.0, "system": 2.0, "idle": 100.0, "iowait": 5.0, "irq": 0.5, "softirq": 0.5}
    times |= {"steal": 3.0, "guest": 4.0, "guest_nice": 0.0}  # guests' time is in user's
    monkeypatch.setattr(psutil, "cpu_times", lambda: namedtuple("Times", times)(**times))
    ours, gone = psutil.Process(), psutil.Process()
    monkeypatch.setattr(ours, "cpu_times", lambda: SimpleNamespace(user=3.0, system=1.0))

    def ended():
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(gone, "cpu_times", ended)
    assert seconds_elsewhere([ours, gone]) == 17.0 - 4.0
