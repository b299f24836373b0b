# ruff: noqa: TID253  imported only once something is to be drawn
"""Charts as the bytes of an SVG or PNG file: lines, stacked bars, histograms, intervals, heat maps."""

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vtools.process import Failure, UsageFailure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, for colour-blind readers
WINS = ("#0072b2", "#c8c8c8", "#e69f00")  # ties are grey
INSIDE = "#111111"  # text on a coloured surface, unlike the black of all other text, which a dark page turns white
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


class Chart(NamedTuple):
    """One chart: its height in inches, its title, and what draws the rest into a figure or a part of one."""

    height: float
    title: str
    draw: Callable[[FigureBase], None]


def check(path: str) -> str:
    """The format of a chart from its file name. Raises UsageFailure for any except .svg and .png."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".svg", ".png"):
        raise UsageFailure(f"{path}: not a chart format; name a .svg or .png file")
    return suffix[1:]


def picture(path: str, *charts: Chart) -> bytes:
    """The charts, one below the other, as the bytes of a file of this name."""
    kind, stream = check(path), io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn instead
        drawn(*charts).savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def drawn(*charts: Chart) -> Figure:
    """The charts, one below the other."""
    heights = [chart.height for chart in charts]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    parts = figure.subfigures(len(charts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for chart, part in zip(charts, parts if len(charts) > 1 else [figure], strict=True):
        chart.draw(part)
        part.suptitle(_shown(chart.title, 64))
    return figure


def lines(title: str, series: dict[str, Points], x_label: str, y_label: str) -> Chart:
    """Named series of (x, y) points as lines. Raises Failure for fewer than two points."""
    series = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    _enough(sum(map(len, series.values())))

    def draw(figure: FigureBase) -> None:
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
            marker = "." if len(points) < 40 else None
            axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=marker)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=len(series), frameon=False)

    return Chart(4.4, title, draw)


def stacked_bars(title: str, x_label: str, rows: list[tuple[str, dict[str, int]]]) -> Chart:
    """One bar per row, of named parts from the best to the worst, scaled to its own sum.

    Raises Failure if no bar has two values.
    """
    rows = [(name, parts) for name, parts in rows if sum(parts.values())]
    sums = [sum(parts.values()) for _, parts in rows]
    _enough(max(sums, default=0))
    labels, places, height = _rows(f"{name} ({whole})" for (name, _), whole in zip(rows, sums, strict=True))

    def draw(figure: FigureBase) -> None:
        axes = figure.add_subplot(xlabel=x_label, xlim=(0, 1), ylim=(height, 0))
        _label_rows(axes, labels, places)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        left = [0.0] * len(rows)
        for colour, part in zip(WINS, rows[0][1], strict=True):
            counts = [parts[part] for _, parts in rows]
            shares = [count / whole for count, whole in zip(counts, sums, strict=True)]
            bars = axes.barh(places, shares, 0.34, left, color=colour, label=part)
            # A part too narrow for its number has none.
            numbers = [f"{count}" * (share > 0.04) for count, share in zip(counts, shares, strict=True)]
            axes.bar_label(bars, numbers, label_type="center", color="white" if colour == WINS[0] else INSIDE)
            left = [start + share for start, share in zip(left, shares, strict=True)]
        figure.legend(loc="outside lower center", ncols=len(WINS), frameon=False)

    return Chart(1.6 + height, title, draw)


def intervals(
    title: str, x_label: str, rows: list[tuple[str, float, Sequence[float] | None]], middle: float | None = None
) -> Chart:
    """A dot per row, with a line from the lower to the upper end of its interval, if it has one.

    `middle` is a value to compare all with, drawn as a vertical line; shares are then in percent. Raises Failure if
    there is no row.
    """
    _enough(2 * len(rows))
    labels, places, height = _rows(name for name, _, _ in rows)

    def draw(figure: FigureBase) -> None:
        axes = figure.add_subplot(xlabel=x_label, ylim=(height, 0))
        _label_rows(axes, labels, places)
        for place, (_, value, ends) in zip(places, rows, strict=True):
            if ends:
                axes.plot(ends, [place] * 2, color=COLOURS[0], linewidth=2, solid_capstyle="butt")
            axes.plot([value], [place], color=COLOURS[0], marker="o")
        if middle is not None:
            axes.axvline(middle, color="#888888", linewidth=1, linestyle="--")
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="x", alpha=0.3)

    return Chart(1.1 + height, title, draw)


def heat_map(
    title: str,
    rows: list[str],
    columns: list[str],
    values: list[list[float | None]],
    ends: tuple[float, float] = (0, 1),
    form: str = "{:.0%}",
) -> Chart:
    """A cell per row and column with its value, coloured from one end (the colour of lost) to the other (that of won).

    Raises Failure if no cell has a value.
    """
    _enough(2 * sum(value is not None for line in values for value in line))
    labels, _, height = _rows(rows)
    heads = [_shown(name, 18) for name in columns]

    def draw(figure: FigureBase) -> None:
        axes = figure.add_subplot()
        colours = LinearSegmentedColormap.from_list("wins", [WINS[2], "#f2f2f2", WINS[0]])
        numbers = [[math.nan if value is None else value for value in line] for line in values]
        axes.pcolormesh(numbers, cmap=colours, vmin=ends[0], vmax=ends[1])  # shapes, where imshow puts an image
        axes.invert_yaxis()
        axes.set_yticks([y + 0.5 for y in range(len(labels))], labels)
        xs = [x + 0.5 for x in range(len(heads))]
        axes.set_xticks(xs, heads, rotation=35, ha="right", rotation_mode="anchor")
        axes.tick_params(left=False, bottom=False)
        axes.spines[:].set_visible(False)
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value is not None:
                    colour = "white" if value > ends[0] + 0.85 * (ends[1] - ends[0]) else INSIDE
                    number = form.format(value)
                    axes.text(x + 0.5, y + 0.5, number, ha="center", va="center", color=colour, size="small")

    return Chart(1.4 + 0.12 * max(map(len, heads)) * 0.6 + height, title, draw)


def histograms(title: str, panels: dict[str, dict[str, int]]) -> Chart:
    """A panel of horizontal bars for each named set of counts, each on its own scale.

    Raises Failure if no panel has two values.
    """
    panels = {name: bars for name, bars in panels.items() if bars}
    _enough(max((sum(bars.values()) for bars in panels.values()), default=0))
    sizes = [len(bars) + 2 for bars in panels.values()]

    def draw(figure: FigureBase) -> None:
        every = figure.subplots(len(panels), height_ratios=sizes, squeeze=False)[:, 0]
        for axes, (name, bars), colour in zip(every, panels.items(), COLOURS, strict=False):
            drawn = axes.barh([_shown(label, 36) for label in bars], list(bars.values()), color=colour)
            axes.bar_label(drawn, [f"{count:,}" for count in bars.values()], padding=3)
            axes.set_title(_shown(name, 64), loc="left")
            axes.set_ylim(len(bars) - 0.4, -0.6)
            axes.margins(x=0.15)  # space for the longest bar's number
            axes.tick_params(left=False)
            axes.xaxis.set_visible(False)  # each bar has its number
            axes.spines["bottom"].set_visible(False)

    return Chart(0.6 + 1.1 * LINE * sum(sizes), title, draw)


def _rows(names: Iterable[str]) -> tuple[list[str], list[float], float]:
    """The labels of rows, the middle of each, and the height of all in inches."""
    labels = [_shown(name, 36) for name in names]
    heights = [0.24 + LINE * (1 + label.count("\n")) for label in labels]
    places = [sum(heights[:index]) + height / 2 for index, height in enumerate(heights)]
    return labels, places, sum(heights)


def _label_rows(axes: Any, labels: list[str], places: list[float]) -> None:
    axes.set_yticks(places, labels)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)


def _enough(values: int) -> None:
    if values < 2:
        raise Failure(f"no chart: {values or 'no'} value{'' if values == 1 else 's'}, and a chart needs at least two")


def _shown(text: str, width: int) -> str:
    """Text wrapped to `width`, eight lines of it at most, without characters that a chart cannot show."""
    kept = ("".join(one if one.isprintable() else "\ufffd" for one in line) for line in text.split("\n"))
    return "\n".join(textwrap.fill(line, width, max_lines=8, placeholder="…") for line in kept)
