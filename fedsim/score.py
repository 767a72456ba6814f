"""Which of two models is the better one, by what was measured of them."""

import math
from collections.abc import Iterable, Mapping


def score(figures: Mapping[str, float]) -> float | None:
    """How good a model is, the more the better: its `test_accuracy`, or where that is not measured minus its
    `test_loss`; the worst, minus infinity, where that is no number, and None where it was not evaluated."""
    if "test_accuracy" in figures:
        found = figures["test_accuracy"]
    elif "test_loss" in figures:
        found = -figures["test_loss"]
    else:
        return None
    return -math.inf if math.isnan(found) else found


def scores(rows: Iterable[Mapping[str, float]]) -> list[float]:
    """`score` of those rounds that were evaluated."""
    return [found for row in rows if (found := score(row)) is not None]
