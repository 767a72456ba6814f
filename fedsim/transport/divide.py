"""Who trains which clients: longest first onto the node that will be done first, at the speed it has shown.

The division decides only how long a round takes. Partial averages are exact sums (`fedsim.aggregate`), so any division
ends in the same bits.
"""

from collections.abc import Sequence

import numpy as np


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
