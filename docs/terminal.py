"""The pictures of a terminal in these pages, made from what the commands print: `python docs/terminal.py`.

Each command runs in a pseudo-terminal of its own, so that it prints what a person sees, bar included. rich draws the
text as SVG. Nothing in the pictures is fetched.
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"
COLUMNS = 112
DEBUG = ["+experiment=debug", "hydra.run.dir=first"]
LONGER = ["+experiment=debug", "server.num_rounds=50", "hydra.run.dir=longer"]  # so that the bar is seen on its way
SWEEP = ["-m", "+experiment=debug", "local.learning_rate=0.005,0.02", "seed=1,2,3", "hydra.sweep.dir=sweep"]


class Screen:
    """The lines of a terminal that knows what tqdm, rich and Hydra use: new lines, returns, going up, bold and dim."""

    def __init__(self) -> None:
        self.lines: list[list[tuple[str, str]]] = [[]]  # of characters with the codes of their style
        self.row, self.column, self.style = 0, 0, ""

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [[] for _ in range(self.row + 1 - len(self.lines))]
            elif part[0] != "\x1b":
                line = self.lines[self.row]
                line += [(" ", "")] * (self.column - len(line))
                line[self.column : self.column + len(part)] = [(letter, self.style) for letter in part]
                self.column += len(part)
            elif part.endswith("A"):
                self.row = max(0, self.row - int(part[2:-1] or 1))
            elif part.endswith("m"):
                self.style = "" if part in ("\x1b[m", "\x1b[0m") else self.style + part

    def text(self) -> str:
        """All lines, with the codes of their styles."""
        lines = (
            "".join(f"{style}{letter}\x1b[0m" if style else letter for letter, style in line) for line in self.lines
        )
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def capture(arguments: list[str], folder: str, columns: int = COLUMNS) -> tuple[str, str]:
    """What `python -m fedsim ARGUMENTS` has on the screen when half of the rounds are done ("" if that was too quick to
    be seen), and at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "fedsim", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(IMAGES.parents[1]), "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    screen, half, received = Screen(), "", b""
    while True:
        try:
            received = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not received:
            break
        screen.feed(received.decode(errors="replace"))
        if not half and re.search(r"[5-8]\d%\|", "".join(letter for letter, _ in screen.lines[screen.row])):
            half = screen.text()
    os.close(ours)
    if process.wait():
        raise SystemExit(screen.text())
    return half, screen.text()


def picture(arguments: list[str], text: str, name: str) -> None:
    """IMAGES/NAME.svg, with the command above what it printed."""
    from rich.console import CONSOLE_SVG_FORMAT, Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.assemble(("$ ", "bold green"), (f"python -m fedsim {' '.join(arguments)}", "bold")))
    console.print(Text.from_ansi(text.replace(str(Path.home()), "~")))
    # The format of rich fetches a font from the web; here the reader's own stands in.
    layout = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    layout = layout.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', monospace")
    svg = console.export_svg(title="fedsim", code_format=layout, unique_id=name.replace("_", "-"))
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, end = capture(DEBUG, folder)
        picture(DEBUG, end, "terminal")
        half, _ = capture(LONGER, folder)
        if not half:
            raise SystemExit("the bar was never seen on its way: give LONGER more rounds")
        picture(LONGER, half, "terminal_half")
        _, end = capture(SWEEP, folder)
        lines = end.split("\n")  # the last job, and the table of all
        last = max(i for i, line in enumerate(lines) if "[HYDRA]" in line)
        picture(SWEEP, "\n".join(["...", *lines[last:]]), "terminal_sweep")


if __name__ == "__main__":
    main()
