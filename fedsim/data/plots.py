"""Pictures of a partition, as papers show them: classes by client, as stacked bars and as a map, and clients' sizes.

Up to `MAX_BARS` clients stand side by side in their own order. More are sorted by their largest class (and within it by
its share) and shown in as many groups of neighbours, each by the mean of its clients' class mixes: sorting keeps alike
clients together, so that a group looks like its members.
"""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from fedsim.data.outline import MAX_COLUMNS as MAX_BARS
from fedsim.data.outline import group_clients

_MAX_NAMES = 30  # clients whose names fit below their bars
_MAX_LEGEND = 20  # classes that fit into a legend
_MAX_NUMBERS = 150  # cells of a map that have room for their numbers
_STEPS = [1, 2, 5, 10]  # of tick marks
_SIZE = (8.0, 3.8)  # inches


def class_bars(counts: np.ndarray, names: list[str] | None = None, title: str = "") -> Figure:
    """Stacked bars: each client's samples of each class, or where clients are grouped, its class mix.

    Args:
        counts: (C, K) samples of each class.
        names: of the clients, shown where there is room; None: numbers.
        title: above the picture.
    """
    heights, grouped = _columns(counts)
    figure, axes = _figure(title)
    bottom = np.zeros(len(heights))
    colours = class_colours(counts.shape[1])
    place = np.arange(len(heights))
    for label, colour in enumerate(colours):
        axes.bar(place, heights[:, label], bottom=bottom, width=1 if grouped else 0.85, color=colour, label=str(label))
        bottom += heights[:, label]
    _clients_axis(axes, len(counts), grouped, names)
    axes.set_ylim(0, 1 if grouped else None)
    if grouped:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("share of the clients' samples")
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_ylabel("samples")
    if len(colours) <= _MAX_LEGEND:
        handles, labels = axes.get_legend_handles_labels()  # from top to bottom as in the bars
        axes.legend(
            handles[::-1], labels[::-1], title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False,
            fontsize="small", handlelength=1, labelspacing=0.25,
        )  # fmt: skip
    else:
        scale = ScalarMappable(Normalize(-0.5, len(colours) - 0.5), ListedColormap(colours))
        figure.colorbar(scale, ax=axes, label="class", ticks=MaxNLocator(8, integer=True, steps=_STEPS), pad=0.01)
    return figure


def class_map(counts: np.ndarray, names: list[str] | None = None, title: str = "") -> Figure:
    """A map: clients from left to right, classes from bottom to top, samples by colour; arguments as `class_bars`."""
    values, grouped = _columns(counts)
    figure, axes = _figure(title)
    # A class that a client has no sample of is white, and the palest blue tells it apart from one that it has few of.
    shown = np.ma.masked_equal(values.T, 0)
    blues = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0.12, 1, 256)))
    largest = float(values.max())
    norm = Normalize(0, largest)
    if not grouped and largest > 50 * np.median(values[values > 0]):
        norm = LogNorm(1, largest)
    image = axes.imshow(shown, aspect="auto", origin="lower", cmap=blues, norm=norm, interpolation="nearest")
    if counts.size <= _MAX_NUMBERS:
        for (client, label), number in np.ndenumerate(counts):
            colour = "white" if norm(number) > 0.6 else "black"
            axes.text(client, label, f"{number:,}", ha="center", va="center", fontsize="x-small", color=colour)
    _clients_axis(axes, len(counts), grouped, names)
    axes.set_ylabel("class")
    if counts.shape[1] <= _MAX_LEGEND:
        axes.set_yticks(range(counts.shape[1]))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, steps=_STEPS))
    number = PercentFormatter(1, decimals=0) if grouped else StrMethodFormatter("{x:,.0f}")
    label = "share of the clients' samples" if grouped else "samples"
    figure.colorbar(image, ax=axes, label=label, format=number, pad=0.01)
    return figure


def size_histogram(sizes: np.ndarray, title: str = "") -> Figure:
    """How many clients have how many samples, with the mean and the median; logarithmic where sizes differ much.

    Args:
        sizes: (C,) samples of each client.
        title: above the picture.
    """
    figure, axes = _figure(title)
    low, high = int(sizes.min()), int(sizes.max())
    num_bins = int(np.clip(2 * np.sqrt(len(sizes)), 8, 40))
    if high - low < max(num_bins, 60 if len(sizes) > 400 else 0):  # a bar for each number
        bins = np.arange(low, high + 2) - 0.5
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=_STEPS))
    elif low > 0 and high > 30 * low:
        bins = _doubling_bins(low, high, num_bins) - 0.5
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else ""))
    else:
        bins = np.linspace(low - 0.5, high + 0.5, num_bins + 1)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    # One bin alone would fill the picture.
    if high == low:
        axes.set_xlim(low - 3, high + 3)
    axes.hist(sizes, bins=bins.tolist(), color="tab:blue", edgecolor="white", linewidth=0.4)
    axes.axvline(float(sizes.mean()), color="black", linewidth=1.2, label=f"mean {sizes.mean():,.1f}")
    axes.axvline(
        float(np.median(sizes)), color="tab:red", linewidth=1.2, linestyle="--", label=f"median {np.median(sizes):,.0f}"
    )
    axes.legend(frameon=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=_STEPS))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("samples of a client")
    axes.set_ylabel("clients")
    return figure


def _doubling_bins(low: int, high: int, num_bins: int) -> np.ndarray:
    """(n + 1,) whole bounds of at most about `num_bins` bins from `low` to beyond `high`, each as wide as its place.

    Sizes are whole numbers: a bin of two of them beside a bin of one would stand twice as high for that alone. So
    bounds double, and only where `low` is so large that rounding does not show are there bounds between.
    """
    doublings = np.log2((high + 1) / low)
    between = int(np.clip(min(low // 9, num_bins / doublings), 1, 8))
    count = int(np.ceil(doublings * between))
    return np.rint(low * 2 ** (np.arange(count + 1) / between))


def class_colours(num_classes: int) -> np.ndarray:
    """(K, 4) colours, of which neighbours differ as much as so many can."""
    if num_classes <= 10:
        return matplotlib.colormaps["tab10"](np.arange(num_classes))
    if num_classes <= 20:
        return matplotlib.colormaps["tab20"](np.arange(num_classes))
    return matplotlib.colormaps["turbo"](np.linspace(0, 1, num_classes))


def _columns(counts: np.ndarray) -> tuple[np.ndarray, bool]:
    """What stands side by side: (C, K) counts, or (`MAX_BARS`, K) mean mixes; and whether it is the latter."""
    if int((counts.sum(1) > 0).sum()) <= MAX_BARS:
        return counts, False
    return group_clients(counts, MAX_BARS), True


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize="medium")
    return figure, axes


def _clients_axis(axes: Axes, num_clients: int, grouped: bool, names: list[str] | None) -> None:
    if grouped:
        axes.set_xlim(-0.5, MAX_BARS - 0.5)
        axes.set_xticks([])
        axes.set_xlabel(
            f"{num_clients:,} clients by their largest class, about {num_clients / MAX_BARS:,.0f} in a column"
        )
        return
    axes.set_xlim(-0.6, num_clients - 0.4)
    axes.set_xlabel("client")
    if num_clients <= _MAX_NAMES:
        shown = names or [str(c) for c in range(num_clients)]
        long = max(map(len, shown)) * num_clients > 90
        axes.set_xticks(range(num_clients), shown, rotation=90 if long else 0, fontsize="small")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=_STEPS))
