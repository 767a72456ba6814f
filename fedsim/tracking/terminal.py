"""Tables and facts as a person reads them. rich draws them: for a terminal with its width and styles, and as plain
aligned text for whatever else they go to (a file, a pipe, a log).

No colours, only bold and dim, which read well on any background. NO_COLOR and TERM=dumb are heeded as everywhere.
"""

import logging
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # imported where something is drawn: the command line answers without it
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

_UNBOUNDED = 100_000  # columns of what is no terminal: nothing is left out of a log
_LEFT_OUT = "..."


@dataclass(frozen=True)
class Column:
    """One column of a `Table`.

    Attributes:
        head: its heading.
        cells: one for each row.
        right: numbers, which end below one another.
        stays: where the terminal is too narrow, other columns are left out before this one.
    """

    head: str
    cells: Sequence[str]
    right: bool = False
    stays: bool = False


@dataclass(frozen=True)
class Table:
    """Columns with headings, below a title, if any; rows in `best` begin with an asterisk, and are bold in a terminal.

    Where a terminal is too narrow, headings take several lines; then columns are left out from the right, and "..."
    stands for them.
    """

    columns: Sequence[Column]
    best: Collection[int] = ()
    title: str = ""

    def __str__(self) -> str:
        return drawn(self)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from rich.text import Text

        if self.title:
            yield Text(self.title)
        plain = _plain(console)
        found = [self._made(columns, plain) for columns in _narrower(self.columns)]
        unbounded = options.update(max_width=_UNBOUNDED)
        fits = (table for table in found if console.measure(table, options=unbounded).maximum <= options.max_width)
        yield next(fits, found[-1])

    def _made(self, columns: Sequence[Column], plain: bool) -> "RichTable":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        # A box stands for one space between columns.
        table = RichTable(
            box=None if plain else box.SIMPLE_HEAD, padding=(0, 2 if plain else 1, 0, 0),
            show_edge=False, pad_edge=False, header_style="bold", border_style="dim",
        )  # fmt: skip
        for i, column in enumerate(columns):
            head = Text("  " + column.head.replace("\n", "\n  ") if i == 0 else column.head)
            table.add_column(head, justify="right" if column.right else "left", no_wrap=True, vertical="bottom")
        for number, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            mark = "* " if number in self.best else "  "
            texts = [Text(mark + cell if i == 0 else cell) for i, cell in enumerate(cells)]
            table.add_row(*texts, style="bold" if number in self.best else None)
        return table


@dataclass(frozen=True)
class Facts:
    """A heading, and what is known under several names, a line each; in a terminal long ones are wrapped.

    Attributes:
        title: the heading; "": none.
        facts: name -> text.
        whole: names of texts that are never wrapped, such as a command, which is copied.
    """

    title: str
    facts: Mapping[str, str]
    whole: Sequence[str] = ()

    def __str__(self) -> str:
        return drawn(self)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from rich.text import Text

        if self.title:
            yield Text(self.title, style="bold")
        width = max(map(len, self.facts)) + 2
        for name, text in self.facts.items():
            room = _UNBOUNDED if name in self.whole else max(options.max_width - 2 - width, 20)
            for i, line in enumerate(Text(text).wrap(console, room)):
                head = ("  " + (name if i == 0 else "").ljust(width), "dim")
                yield Text.assemble(head, line, no_wrap=True, overflow="ignore")


class Formatter(logging.Formatter):
    """Of the log on standard error: tables are drawn for the terminal, and lines are broken between words.

    In a file, whose formatter knows nothing of this, all is plain.
    """

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Table | Facts):
            return drawn(record.msg, sys.stderr)
        text = super().format(record)
        return text if record.exc_info else drawn(text, sys.stderr)


def drawn(what: Table | Facts | str, stream: TextIO | None = None) -> str:
    """Lines, without the last newline.

    Args:
        what: to draw.
        stream: where the text will be printed. If that is a terminal, the text fits its width and has its codes for
            bold and dim; else, and with None, it is plain and as wide as it needs to be.
    """
    import io

    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream or io.StringIO(), force_jupyter=False, highlight=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    if _plain(console):
        console = Console(file=io.StringIO(), force_jupyter=False, color_system=None, width=console.width)
    with console.capture() as captured:
        console.print(Text(what) if isinstance(what, str) else what, crop=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _plain(console: "Console") -> bool:
    return console.color_system is None or console.no_color


def _narrower(columns: Sequence[Column]) -> Iterator[list[Column]]:
    """All columns; with headings in several lines; then fewer and fewer of them."""
    yield list(columns)
    left = [replace(column, head=_stacked(column)) for column in columns]
    yield left
    dots = Column(_LEFT_OUT, [""] * len(columns[0].cells))
    while goes := [i for i in range(1, len(left)) if not left[i].stays]:
        left = left[: goes[-1]] + left[goes[-1] + 1 :]
        yield [*left[: goes[-1]], dots, *left[goes[-1] :]]


def _stacked(column: Column) -> str:
    """The heading in as many lines as it takes to be no wider than the cells, or than its longest word."""
    width = max(map(len, [*column.cells, *column.head.split()]))
    return "\n".join(textwrap.wrap(column.head, width))
