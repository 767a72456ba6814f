"""The bar and the lines: what they say, and that neither vanishes."""

import fcntl
import io
import logging
import os
import pty
import select
import struct
import termios

import pytest

from fedsim.tracking import progress as module
from fedsim.tracking.progress import Progress, duration

ROUND = {"train_loss": 1.5, "clients": 10, "samples": 2251, "seconds": 0.5, "peak_memory_bytes": 2**30}
EVALUATED = {"test_accuracy": 0.655, "test_loss": 1.24}


def test_a_line_reads_like_a_sentence(caplog, monkeypatch):
    clock = iter([0.0, 100.0, 200.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "fedsim"), Progress(6, done=2, enabled=False) as progress:
        progress.log({"round": 3, **ROUND})
        progress.log({"round": 4, **ROUND, **EVALUATED})
    assert caplog.messages == [
        # no evaluation, but nothing was said for 100 s
        "round 3 of 6: 10 clients trained on 2,251 samples in 0.50 s to a loss of 1.500; about 5 min left",
        "round 4 of 6: 10 clients trained on 2,251 samples in 0.50 s to a loss of 1.500; "
        "test accuracy 65.5%, loss 1.240; about 3 min left",
    ]


def test_rounds_without_news_are_silent(caplog):
    with caplog.at_level(logging.INFO, "fedsim"), Progress(3, enabled=False) as progress:
        progress.log({"round": 1, **ROUND})
        assert caplog.messages == []
        progress.log({"round": 2, **ROUND, "clients": 1, **EVALUATED})
    assert "1 client trained" in caplog.messages[0]
    assert "left" not in caplog.messages[0]  # less than a second


@pytest.mark.parametrize("columns", [0, 120])
def test_the_bar_shows_something_on_a_terminal_of_any_width(columns, monkeypatch):
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.delenv("LINES", raising=False)
        with os.fdopen(os.dup(theirs), "w") as terminal:
            monkeypatch.setattr("sys.stderr", terminal)
            with Progress(2) as progress:
                assert progress.enabled
                progress.log({"round": 1, **ROUND, **EVALUATED})
                progress.bar.refresh()
                logging.getLogger("fedsim").warning("a word in between")
        printed = ""
        while "loss=1.5" not in printed and select.select([ours], [], [], 10)[0]:  # it comes in pieces
            printed += os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "1/2" in printed
    assert "loss=1.5" in printed


def test_a_bar_that_is_asked_for_is_drawn_into_a_file(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with Progress(2, enabled=True) as progress:
        progress.log({"round": 1, **ROUND})
    assert "1/2" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.044, "0.04 s"), (12.3, "12 s"), (200.0, "3 min"), (7500.0, "2 h 5 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_what_is_left_is_a_guess():
    assert duration(1.61, guess=True) == "2 s"
