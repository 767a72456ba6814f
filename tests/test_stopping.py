"""Early stopping: the rule by hand, and that a stopped run is the beginning of the unstopped one."""

import json

import pytest

import fedsim
from fedsim.config import ServerConfig
from fedsim.data.federated import FederatedDataset
from fedsim.models import logistic

DEBUG = "+experiment=debug"


def accuracies(directory) -> list[float]:
    return [json.loads(line)["test_accuracy"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "seen", "reason"),
    [
        ({}, [0.1, 0.1, 0.1, 0.1], None),
        ({"stop_at_accuracy": 0.5}, [], None),
        ({"stop_at_accuracy": 0.5}, [0.4], None),
        ({"stop_at_accuracy": 0.5}, [0.4, 0.5], "target"),
        ({"patience": 2}, [0.3, 0.2], None),
        ({"patience": 2}, [0.3, 0.2, 0.2], "patience"),
        ({"patience": 2}, [0.3, 0.2, 0.4, 0.4], None),
        ({"patience": 2}, [0.3, 0.2, 0.4, 0.4, 0.4], "patience"),  # as good is not better
        ({"patience": 1, "stop_at_accuracy": 0.3}, [0.3], "target"),
    ],
)
def test_the_rule(settings, seen, reason):
    assert ServerConfig(**settings).stop(seen) == reason


def test_a_run_ends_at_its_target_and_says_so(fedsim, tmp_path):
    whole = fedsim(DEBUG, directory=tmp_path / "whole")
    reached = accuracies(whole.directory)
    target = max(reached[:3])
    ends = next(i for i, accuracy in enumerate(reached) if accuracy >= target)
    done = fedsim(DEBUG, f"server.stop_at_accuracy={target}", "checkpoint.every=100", directory=tmp_path / "early")
    assert done.code == 0, done.err
    assert accuracies(done.directory) == reached[: ends + 1]
    assert json.loads((done.directory / "summary.json").read_text())["stopped"] == "target"
    assert json.loads((whole.directory / "summary.json").read_text())["stopped"] is None
    again = fedsim(DEBUG, f"server.stop_at_accuracy={target}", f"checkpoint.resume={done.directory}")
    assert again.code == 0, again.err
    assert accuracies(done.directory) == reached[: ends + 1]  # its last round was saved: nothing is left to do
    on = fedsim(DEBUG, f"checkpoint.resume={done.directory}")
    assert on.code == 0, on.err
    assert accuracies(done.directory) == reached


def test_a_preview_that_reaches_the_target_must_hold_on_all_samples(make_dataset, monkeypatch):
    answers = iter([0.2, 0.9, 0.3, 0.9, 0.8])  # round 1; round 2 and all of its samples; round 3 and all of its
    asked = []

    def evaluate(*, whole: bool = True) -> dict[str, float]:
        asked.append(whole)
        return {"test_accuracy": next(answers)}

    config = ServerConfig(num_rounds=9, clients_per_round=2, evaluate_every=1, stop_at_accuracy=0.7)
    simulation = fedsim.Simulation(make_dataset([9, 9, 9]), logistic, server=config, device="cpu")
    monkeypatch.setattr(simulation, "evaluate", evaluate)
    assert [metrics["test_accuracy"] for metrics in simulation.rounds()] == [0.2, 0.3, 0.8]
    assert asked == [False, False, True, False, True]
    assert simulation.stopped == "target"


def test_stopping_needs_evaluations(make_dataset):
    with pytest.raises(ValueError, match=r"need server\.evaluate_every of 1 or more"):
        ServerConfig(patience=1, evaluate_every=0)
    whole = make_dataset([9, 9])
    bare = FederatedDataset(name="bare", train=whole.train, client_ids=whole.client_ids, num_classes=4)
    with pytest.raises(ValueError, match="need a test set; bare has none"):
        fedsim.Simulation(bare, logistic, server=ServerConfig(clients_per_round=1, patience=3))
