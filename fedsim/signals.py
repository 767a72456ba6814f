"""Signals that end a run."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ends_at_a_signal() -> Iterator[None]:
    """SIGTERM, by which schedulers and service managers end a process, ends it as Ctrl-C does. Slurm sends it again and
    again, and after a Ctrl-C too: what ends must not be disturbed."""

    def end(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # where signals are not heard
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a shell's background jobs ignore it
        numbers.append(signal.SIGINT)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it; 130 where the number is not known."""
    return 128 + int(stop.args[0] if stop.args else signal.SIGINT)
