"""Tables and facts: fitted and styled in a terminal, plain and whole elsewhere."""

import io
import logging
import re

import pytest

from fedsim.tracking.terminal import Column, Facts, Formatter, Table, drawn

TABLE = Table(
    [
        Column("job", ["0", "1", "2"]),
        Column("transforms", ["[clip]", "[bold]", "none"]),  # no markup of rich
        Column("best accuracy", ["9.8%", "59.1%", "33.1%"], right=True, stays=True),
        Column("rounds to 40.0%", ["-", "1,234", "5"], right=True),
    ],
    best=[1],
    title="the best 3 of 10 runs",
)
FACTS = Facts(
    "debug has ended", {"clients": "many words " * 9, "report": "python -m fedsim.report " + "x" * 80}, ["report"]
)
PLAIN = [
    "the best 3 of 10 runs",
    "  job  transforms  best accuracy  rounds to 40.0%",
    "  0    [clip]               9.8%                -",
    "* 1    [bold]              59.1%            1,234",
    "  2    none                33.1%                5",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch: pytest.MonkeyPatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def shown(what: Table | Facts, columns: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """What is printed in a terminal, and its lines without codes."""
    monkeypatch.setenv("COLUMNS", str(columns))
    text = drawn(what, Terminal())
    return text, [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_elsewhere_a_table_is_plain_and_whole(stream, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")  # of the terminal in which the command was typed
    assert drawn(TABLE, stream).splitlines() == PLAIN
    assert str(TABLE).splitlines() == PLAIN


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_codes_gets_none(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert shown(TABLE, 80, monkeypatch)[0].splitlines() == PLAIN
    assert "\x1b" not in shown(FACTS, 80, monkeypatch)[0]


def test_a_terminal_gets_bold_and_dim_and_no_colour(monkeypatch):
    text, lines = shown(TABLE, 80, monkeypatch)
    assert [line for line in lines if not line.startswith("\u2500")] == PLAIN
    assert {code for code in re.findall(r"\x1b\[([0-9;]*)m", text)} == {"0", "1", "2"}
    (best,) = [line for line in text.splitlines() if "59.1%" in line]
    assert best.startswith("\x1b[1m* 1")


@pytest.mark.parametrize(
    ("columns", "heads", "best"),
    [
        (
            49,
            ["  job  transforms  best accuracy  rounds to 40.0%"],
            "* 1    [bold]              59.1%            1,234",
        ),
        (
            48,
            [
                "                             rounds",
                "                       best      to",
                "  job  transforms  accuracy   40.0%",
            ],
            "* 1    [bold]         59.1%   1,234",
        ),
        (
            34,
            [
                "                       best",
                "  job  transforms  accuracy  ...",
            ],
            "* 1    [bold]         59.1%",
        ),
        (
            31,
            [
                "                best",
                "  job  ...  accuracy",
            ],
            "* 1            59.1%",
        ),
    ],
)
def test_headings_take_more_lines_and_then_columns_are_left_out(columns, heads, best, monkeypatch):
    _, lines = shown(TABLE, columns, monkeypatch)
    (rule,) = [i for i, line in enumerate(lines) if line.startswith("\u2500")]
    assert lines[1:rule] == heads
    assert lines[rule + 2] == best
    assert len(lines[rule]) == max(map(len, lines[1:])) <= columns


def test_facts_are_wrapped_below_themselves_but_commands_never(monkeypatch):
    _, lines = shown(FACTS, 60, monkeypatch)
    assert lines[0] == "debug has ended"
    assert lines[1].startswith("  clients  many words")
    assert lines[2].startswith("           many") or lines[2].startswith("           words")
    assert all(len(line) <= 60 for line in lines[:-1])
    assert lines[-1] == "  report   python -m fedsim.report " + "x" * 80
    assert len(str(FACTS).splitlines()) == 3


def test_a_log_draws_them_for_the_terminal_and_writes_them_plainly(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    record = logging.LogRecord("fedsim", logging.INFO, __file__, 1, FACTS, None, None)
    assert Formatter().format(record).startswith("\x1b[1mdebug has ended\x1b[0m\n")
    assert logging.Formatter("%(levelname)s %(message)s").format(record) == f"INFO {FACTS}"


def test_a_line_of_the_log_is_broken_between_words_in_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    record = logging.LogRecord("fedsim", logging.INFO, __file__, 1, "  %d words, [bold] or :smile:", (5,), None)
    for stream, lines in ((Terminal(), ["  5 words, [bold] or", ":smile:"]), (io.StringIO(), [record.getMessage()])):
        monkeypatch.setattr("sys.stderr", stream)
        assert Formatter().format(record).splitlines() == lines
