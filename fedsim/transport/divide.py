"""Who trains which clients: longest first onto the node that will be done first, at the speed it has shown.

The division decides only how long a round takes. Partial averages are exact sums (`fedsim.aggregate`), so any division
ends in the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_HOPE = 1.5  # factor by which a node that got nothing is thought to be faster than before


@dataclass
class Pace:
    """How fast a node has been; a bad start is forgotten.

    A node that once looked slow would get no clients, and so never show that it is fast. So whenever it got none, it
    is hoped to be a little faster, up to the fastest: one that is thought to be q times slower than the fastest gets a
    share at the latest after log(q) / log(1.5) + 1 divisions without one, of at least as many tasks as nodes.

    Attributes:
        speed: work a second, a running average; None: unknown.
    """

    speed: float | None = None

    def saw(self, work: float, seconds: float) -> None:
        """It did so much work in so many seconds."""
        shown = work / max(1e-9, seconds)
        self.speed = shown if self.speed is None else 0.5 * (self.speed + shown)

    def passed_over(self, fastest: float) -> None:
        """It got nothing in a division; `fastest`: greatest speed among the nodes."""
        if self.speed is not None:
            self.speed = max(self.speed, min(fastest, self.speed * _HOPE))


def divide(work: np.ndarray, speeds: Sequence[float]) -> list[np.ndarray]:
    """Divide tasks among nodes (longest-processing-time list scheduling on machines of unequal speed).

    Args:
        work: (m,) of each task, in any unit; not negative.
        speeds: of each node, in that unit a second; positive.

    Returns:
        For each node the tasks that it gets, as rising indices into `work`; some may be empty.
    """
    seconds_each = 1 / np.asarray(speeds, np.float64)
    busy = np.zeros(len(speeds))  # seconds until each node is done
    node_of = np.zeros(len(work), np.int64)
    for task in np.argsort(-work, kind="stable").tolist():
        done = busy + work[task] * seconds_each
        node = int(done.argmin())
        busy[node], node_of[task] = done[node], node
    return [np.flatnonzero(node_of == node) for node in range(len(speeds))]
