# ruff: noqa: TID253  imported only once something is to be drawn
"""Charts as the bytes of an SVG or PNG file: lines, stacked bars, histograms."""

import functools
import io
import math
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vtools.process import Failure, UsageFailure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, for colour-blind readers
WINS = ("#0072b2", "#c8c8c8", "#e69f00")  # ties are grey
WIDTH = 7.5  # inches
LINE = 0.21  # inches per line of text
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vtools",  # the same input gives the same bytes
    "text.parse_math": False,  # a $ in a name is a $
    "figure.constrained_layout.use": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.titlesize": "large",
    "savefig.dpi": 144,
}

Points = list[tuple[float, float]]


def check(path: str) -> str:
    """The format of a chart from its file name. Raises UsageFailure for any except .svg and .png."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".svg", ".png"):
        raise UsageFailure(f"{path}: not a chart format; name a .svg or .png file")
    return suffix[1:]


def _picture(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Turn a function that draws a figure into one that returns the file's bytes, given the file name first."""

    @functools.wraps(draw)
    def picture(path: str, *args: object) -> bytes:
        kind, stream = check(path), io.BytesIO()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn instead
            metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            draw(*args).savefig(stream, format=kind, metadata=metadata)
        return stream.getvalue()

    return picture


@_picture
def lines(title: str, series: dict[str, Points], x_label: str, y_label: str) -> Figure:
    """Named series of (x, y) points as lines. Raises Failure for fewer than two points."""
    series = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    _enough(sum(map(len, series.values())))
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker="." if len(points) < 40 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
    figure.suptitle(_shown(title, 64))
    return figure


@_picture
def stacked_bars(title: str, x_label: str, rows: list[tuple[str, dict[str, int]]]) -> Figure:
    """One bar per row, of named parts from the best to the worst, scaled to its own sum.

    Raises Failure if no bar has two values.
    """
    rows = [(name, parts) for name, parts in rows if sum(parts.values())]
    sums = [sum(parts.values()) for _, parts in rows]
    _enough(max(sums, default=0))
    labels = [_shown(f"{name} ({whole})", 36) for (name, _), whole in zip(rows, sums, strict=True)]
    heights = [0.24 + LINE * (1 + label.count("\n")) for label in labels]
    places = [sum(heights[:index]) + height / 2 for index, height in enumerate(heights)]
    figure = Figure(figsize=(WIDTH, 1.6 + sum(heights)))
    axes = figure.add_subplot(xlabel=x_label, xlim=(0, 1), ylim=(sum(heights), 0))
    axes.set_yticks(places, labels)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    left = [0.0] * len(rows)
    for colour, part in zip(WINS, rows[0][1], strict=True):
        counts = [parts[part] for _, parts in rows]
        shares = [count / whole for count, whole in zip(counts, sums, strict=True)]
        bars = axes.barh(places, shares, 0.34, left, color=colour, label=part)
        # A part too narrow for its number has none.
        numbers = [f"{count}" * (share > 0.04) for count, share in zip(counts, shares, strict=True)]
        axes.bar_label(bars, numbers, label_type="center", color="white" if colour == WINS[0] else "black")
        left = [start + share for start, share in zip(left, shares, strict=True)]
    figure.legend(loc="outside lower center", ncols=len(WINS), frameon=False)
    figure.suptitle(_shown(title, 64))
    return figure


@_picture
def histograms(title: str, panels: dict[str, dict[str, int]]) -> Figure:
    """A panel of horizontal bars for each named set of counts, each on its own scale.

    Raises Failure if no panel has two values.
    """
    panels = {name: bars for name, bars in panels.items() if bars}
    _enough(max((sum(bars.values()) for bars in panels.values()), default=0))
    sizes = [len(bars) + 2 for bars in panels.values()]
    figure = Figure(figsize=(WIDTH, 0.6 + 1.1 * LINE * sum(sizes)))
    every: list[Axes] = list(figure.subplots(len(panels), height_ratios=sizes, squeeze=False)[:, 0])
    for axes, (name, bars), colour in zip(every, panels.items(), COLOURS, strict=False):
        drawn = axes.barh([_shown(label, 36) for label in bars], list(bars.values()), color=colour)
        axes.bar_label(drawn, [f"{count:,}" for count in bars.values()], padding=3)
        axes.set_title(_shown(name, 64), loc="left")
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.margins(x=0.15)  # space for the longest bar's number
        axes.tick_params(left=False)
        axes.xaxis.set_visible(False)  # each bar has its number
        axes.spines["bottom"].set_visible(False)
    figure.suptitle(_shown(title, 64))
    return figure


def _enough(values: int) -> None:
    if values < 2:
        raise Failure(f"no chart: {values or 'no'} value{'' if values == 1 else 's'}, and a chart needs at least two")


def _shown(text: str, width: int) -> str:
    """Text wrapped to `width`, without characters that a chart cannot show."""
    kept = ("".join(one if one.isprintable() else "\ufffd" for one in line) for line in text.split("\n"))
    return "\n".join(textwrap.fill(line, width) for line in kept)
