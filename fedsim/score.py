"""Which of two models is the better one, by what was measured of them."""

from collections.abc import Iterable, Mapping


def score(figures: Mapping[str, float]) -> float | None:
    """How good a model is, the more the better: its `test_accuracy`, or where that is not measured minus its
    `test_loss`; None where it was not evaluated."""
    if "test_accuracy" in figures:
        return figures["test_accuracy"]
    return -figures["test_loss"] if "test_loss" in figures else None


def scores(rows: Iterable[Mapping[str, float]]) -> list[float]:
    """`score` of those rounds that were evaluated."""
    return [found for row in rows if (found := score(row)) is not None]
