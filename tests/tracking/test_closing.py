"""What is said at the end: the figures of summary.json."""

import pytest

from fedsim.tracking.closing import outcome, size

SUMMARY = {
    "rounds": 20, "final": {"train_loss": 0.99, "test_loss": 1.126, "test_accuracy": 0.702},
    "best": {"round": 18, "test_loss": 1.1, "test_accuracy": 0.71},
    "num_clients": 3550,
    "clients": {"split": "test", "evaluated": 350, "client_accuracy_p10": 0.5, "client_accuracy_p50": 0.7,
                "client_accuracy_p90": 0.9, "client_accuracy_worst": 0.25},
    "seconds_per_round_median": 9.5, "seconds_training": 190.0, "seconds_evaluating": 12.0,
    "peak_memory_bytes": 1600 * 2**20, "bytes_up": 3 * 2**30, "bytes_down": 1536,
}  # fmt: skip


def test_the_outcome_tells_each_thing_that_is_known():
    assert outcome(SUMMARY) == {
        "test accuracy": "70.2%, loss 1.126",
        "best": "71.0%, loss 1.100, in round 18",
        "training loss": "0.990",
        "clients": "accuracy 50.0% / 70.0% / 90.0% (10th, 50th, 90th percentile of 350 clients; worst 25.0%)",
        "time": "9.50 s a round (median); 3 min training, 12 s evaluating",
        "memory": "1,600 MiB at the peak",
        "sent": "3 GiB up, 1.5 KiB down",
    }


def test_without_a_test_set_there_is_no_accuracy():
    bare = {key: value for key, value in SUMMARY.items() if key not in ("best", "clients", "bytes_up", "bytes_down")}
    told = outcome({**bare, "final": {"train_loss": 0.99}, "virtual_seconds": 7500.0})
    assert list(told) == ["training loss", "time", "virtual time", "memory"]
    assert told["virtual time"] == "2 h 5 min"


def test_all_clients_are_not_counted():
    everyone = {**SUMMARY["clients"], "evaluated": 3550, "split": "train"}
    told = outcome({**SUMMARY, "clients": everyone})
    assert "90th percentile; worst 25.0%, on their train samples)" in told["clients"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (412, "412 B"), (3174, "3.1 KiB"), (2**34, "16 GiB")])
def test_sizes(number, text):
    assert size(number) == text
