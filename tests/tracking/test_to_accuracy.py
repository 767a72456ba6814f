"""Rounds, virtual time and bytes to an accuracy."""

from fedsim.tracking.summary import summarise, to_accuracy


def test_what_it_took_to_reach_an_accuracy_first():
    rows = [
        {"round": 1, "virtual_seconds": 2.0, "bytes_down": 10, "bytes_up": 4, "test_accuracy": 0.05},
        {"round": 2, "virtual_seconds": 5.0, "bytes_down": 10, "bytes_up": 3},
        {"round": 3, "virtual_seconds": 7.0, "bytes_down": 20, "bytes_up": 4, "test_accuracy": 0.25},
        {"round": 4, "virtual_seconds": 9.0, "bytes_down": 10, "bytes_up": 4, "test_accuracy": 0.19},
        {"round": 5, "virtual_seconds": 9.5, "bytes_down": 10, "bytes_up": 4, "test_accuracy": 0.3},
    ]
    third = {"round": 3, "virtual_seconds": 7.0, "bytes_down": 40, "bytes_up": 11}
    fifth = {"round": 5, "virtual_seconds": 9.5, "bytes_down": 60, "bytes_up": 19}
    assert to_accuracy(rows) == {"0.1": third, "0.2": third, "0.3": fifth}


def test_without_devices_there_are_rounds():
    row = {
        "round": 1,
        "train_loss": 1.0,
        "test_loss": 1.0,
        "test_accuracy": 0.96,
        "seconds": 1.0,
        "peak_memory_bytes": 1,
    }
    reached = summarise([row])["to_accuracy"]
    assert list(reached) == [*(f"0.{i}" for i in range(1, 10)), "0.95"]
    assert reached["0.95"] == {"round": 1}
    assert "to_accuracy" not in summarise([{**row, "test_accuracy": 0.05}])
