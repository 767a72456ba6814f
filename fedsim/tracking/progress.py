"""What a person sees while a run goes on: a bar in a terminal, and lines elsewhere."""

import logging
import os
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger("fedsim")

_SILENCE_SECONDS = 30.0  # without an evaluation to tell of, a line this often shows that the run is alive
_FALLBACK_COLUMNS = 80


class Progress:
    """A tqdm bar over rounds with loss, accuracy, clients a second and memory; without it a line an evaluation.

    Args:
        num_rounds: rounds in total.
        done: rounds finished before (a resumed run).
        enabled: None shows the bar only when standard error is a terminal.
    """

    def __init__(self, num_rounds: int, *, done: int = 0, enabled: bool | None = None) -> None:
        self.num_rounds, self.done = num_rounds, done
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self.bar = tqdm(total=num_rounds, initial=done, unit="round", disable=not self.enabled, **_width())
        self.shown: dict[str, str] = {}
        self.begin = self.told = time.monotonic()
        self.stack = ExitStack()

    def log(self, metrics: dict[str, Any]) -> None:
        """A round has ended."""
        self.shown["loss"] = f"{metrics['train_loss']:.3f}"
        if "test_accuracy" in metrics:
            self.shown["accuracy"] = f"{metrics['test_accuracy']:.1%}"
        elif "test_loss" in metrics:
            self.shown["test"] = f"{metrics['test_loss']:.3f}"
        self.shown["clients/s"] = f"{metrics['clients'] / metrics['seconds']:.3g}"
        self.shown["memory"] = f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"
        if self.enabled:
            self._tell_what_fits()
        self.bar.update()
        now = time.monotonic()
        if not self.enabled and ("test_loss" in metrics or now - self.told > _SILENCE_SECONDS):
            self.told = now
            log.info(self._sentence(metrics, now - self.begin))

    def _tell_what_fits(self) -> None:
        """Beside a bar of ten columns at least; what is shown last is left out first."""
        shown = dict(self.shown)
        self.bar.set_postfix(shown, refresh=False)
        while (
            shown and len(tqdm.format_meter(**{**self.bar.format_dict, "ncols": None})) > self.bar.format_dict["ncols"]
        ):
            shown.popitem()
            self.bar.set_postfix(shown, refresh=False)

    def _sentence(self, metrics: dict[str, Any], elapsed: float) -> str:
        round = metrics["round"]
        clients = f"{metrics['clients']:,} client{'s' if metrics['clients'] != 1 else ''}"
        text = f"round {round} of {self.num_rounds}: {clients} trained on {metrics['samples']:,} samples in "
        text += f"{duration(metrics['seconds'])} to a loss of {metrics['train_loss']:.3f}"
        if "test_accuracy" in metrics:
            text += f"; test accuracy {metrics['test_accuracy']:.1%}, loss {metrics['test_loss']:.3f}"
        elif "test_loss" in metrics:
            text += f"; test loss {metrics['test_loss']:.3f}"
        left = elapsed / (round - self.done) * (self.num_rounds - round)
        return f"{text}; about {duration(left, guess=True)} left" if left >= 1 else text

    def __enter__(self) -> "Progress":
        if self.enabled:  # a line that is logged goes above the bar, not through it
            self.stack.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
        self.stack.close()


def _width() -> dict[str, Any]:
    """How wide the bar is: as the terminal, also when it changes, or 80 where that cannot be known.

    Some terminals (containers, serial lines) say that they have 0 columns, for which tqdm draws nothing.
    """
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # not a terminal, or not a file
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": _FALLBACK_COLUMNS}


def duration(seconds: float, *, guess: bool = False) -> str:
    """As a person says it: 0.04 s, 12 s, 3 min, 2 h 5 min; a guess has no fractions of a second."""
    if seconds < 10 and not guess:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
