"""What a person sees while a run goes on: a bar in a terminal, and lines elsewhere."""

import logging
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

log = logging.getLogger("fedsim")


class Progress:
    """A tqdm bar over rounds with loss, accuracy, clients a second and memory; without it a line an evaluation.

    Args:
        num_rounds: rounds in total.
        done: rounds finished before (a resumed run).
        enabled: None shows the bar only when standard error is a terminal.
    """

    def __init__(self, num_rounds: int, *, done: int = 0, enabled: bool | None = None) -> None:
        self.num_rounds = num_rounds
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self.bar = tqdm(total=num_rounds, initial=done, unit="round", disable=not self.enabled, dynamic_ncols=True)
        self.shown: dict[str, str] = {}

    def log(self, metrics: dict[str, Any]) -> None:
        """A round has ended."""
        self.shown["loss"] = f"{metrics['train_loss']:.3f}"
        if "test_accuracy" in metrics:
            self.shown["accuracy"] = f"{metrics['test_accuracy']:.1%}"
        self.shown["clients/s"] = f"{metrics['clients'] / metrics['seconds']:.3g}"
        self.shown["memory"] = f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update()
        if not self.enabled and "test_accuracy" in metrics:
            log.info(
                f"round {metrics['round']} of {self.num_rounds}: train loss {metrics['train_loss']:.3f}, "
                f"test loss {metrics['test_loss']:.3f}, test accuracy {metrics['test_accuracy']:.1%}, "
                f"{metrics['seconds']:.2f} s a round"
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
