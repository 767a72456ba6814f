"""The pictures show the numbers: heights of bars, cells of the map, counts of the histogram."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.plots import (
    MAX_BARS,
    _doubling_bins,
    class_bars,
    class_colours,
    class_map,
    group_clients,
    size_histogram,
)


def test_bars_are_stacked_to_the_clients_sizes():
    counts = np.array([[3, 0, 2], [1, 4, 0]])
    axes = class_bars(counts, ["ann", "bob"], "two").axes[0]
    tops = {(round(b.get_x() + b.get_width() / 2), b.get_y(), b.get_height()) for b in axes.patches}
    assert tops == {(0, 0, 3), (0, 3, 0), (0, 3, 2), (1, 0, 1), (1, 1, 4), (1, 5, 0)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ann", "bob"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["2", "1", "0"]
    assert axes.get_title() == "two"


def test_the_map_shows_the_counts():
    counts = np.array([[3, 0, 2], [1, 4, 0]])
    axes = class_map(counts).axes[0]
    shown = axes.images[0].get_array()
    assert shown is not None
    assert np.ma.filled(shown, 0).tolist() == counts.T.tolist()
    assert np.ma.getmaskarray(shown).tolist() == (counts.T == 0).tolist()
    assert {(t.get_position(), t.get_text()) for t in axes.texts} >= {((0, 2), "2"), ((1, 1), "4")}


def test_many_clients_are_grouped_without_mixing_largest_classes():
    # 600 clients of class 0 alone, 300 with 2/3 class 1, and 100 of class 2 alone, in mixed order
    counts = np.array([[9, 0, 0]] * 600 + [[1, 2, 0]] * 300 + [[0, 0, 5]] * 100)
    counts = np.random.default_rng(0).permutation(np.concatenate([counts, [[0, 0, 0]]]))
    groups = group_clients(counts, 10)
    np.testing.assert_allclose(groups, [[1, 0, 0]] * 6 + [[1 / 3, 2 / 3, 0]] * 3 + [[0, 0, 1]])
    # clients count alike whatever their size; the mean over groups is then the mean over clients
    np.testing.assert_allclose(groups.mean(0), [0.7, 0.2, 0.1])
    axes = class_bars(counts).axes[0]
    assert len(axes.patches) == 3 * MAX_BARS
    assert axes.get_xlabel() == "1,001 clients by their largest class, about 10 in a column"


def test_ties_for_the_largest_class_take_turns():
    groups = group_clients(np.ones((400, 4), dtype=np.int64), 8)
    np.testing.assert_allclose(groups, 0.25)
    # with two samples of two classes, no class may be favoured for its number
    counts = np.zeros((1200, 4), dtype=np.int64)
    pairs = [(a, b) for a in range(4) for b in range(a)] * 200
    for client, pair in enumerate(pairs):
        counts[client, list(pair)] = 1
    np.testing.assert_allclose(group_clients(counts, 100).mean(0), 0.25, atol=0.02)


def test_more_classes_than_groups():
    groups = group_clients(np.eye(300, dtype=np.int64), 100)
    np.testing.assert_allclose(groups.sum(1), 1)
    assert (groups[0][:3] > 0).all()


@pytest.mark.parametrize(
    "sizes",
    [np.full(20, 7), np.arange(1, 50), np.geomspace(1, 10**5, 3000).astype(int), np.arange(0, 5000), np.array([3])],
    ids=["equal", "few", "wide", "with zero", "one"],
)
def test_the_histogram_counts_every_client(sizes):
    axes = size_histogram(sizes).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(sizes)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"mean {sizes.mean():,.1f}", f"median {np.median(sizes):,.0f}"]


@given(st.integers(1, 400), st.integers(31, 10**6), st.integers(8, 40))
def test_logarithmic_bins_are_as_wide_as_their_place(low, times, num_bins):
    # else two neighbours differ in height for their widths alone, as a bin of {8, 9} beside one of {10} does
    high = times * low
    bounds = _doubling_bins(low, high, num_bins)
    assert bounds[0] == low
    assert bounds[-1] > high
    np.testing.assert_array_equal(bounds, np.rint(bounds))
    widths = np.diff(bounds) / bounds[:-1]
    assert np.ptp(widths) <= 0.22 * widths.mean()  # bounds are rounded, and where they double they are exact
    assert len(widths) <= max(num_bins, np.log2(times) + 1) + 1


@pytest.mark.parametrize("number", [1, 10, 20, 62, 100])
def test_classes_have_colours_of_their_own(number):
    assert len(np.unique(class_colours(number), axis=0)) == number


def test_many_classes_get_a_scale_instead_of_a_legend():
    figure = class_bars(np.ones((5, 62), dtype=np.int64))
    assert figure.axes[0].get_legend() is None
    assert figure.axes[1].get_ylabel() == "class"
