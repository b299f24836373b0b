"""Pictures of numbers: lines and stacked bars, as SVG without any library, as PNG with matplotlib."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from vtools.files.atomic import atomic
from vtools.process import UsageFailure, missing_extra

COLOURS = ("#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00")
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 56

Points = list[tuple[float, float]]


def lines(path: str | Path, title: str, series: dict[str, Points], x_label: str, y_label: str) -> None:
    """Draw named series of (x, y) points as lines. Raises UsageFailure for a format other than .svg and .png."""
    series = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if _wants_png(path):
        figure, axes = _figure(title)
        for index, (name, points) in enumerate(series.items()):
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=COLOURS[index % 8],
                marker="." if len(points) < 12 else None,
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend()
        _save(figure, path)
        return
    xs = [x for points in series.values() for x, _ in points] or [0, 1]
    ys = [y for points in series.values() for _, y in points] or [0, 1]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs))
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def x_at(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in x_ticks:
        parts.append(_text(x_at(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in y_ticks:
        parts.append(f'<path d="M{LEFT} {y_at(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y_at(tick) + 4, f"{tick:g}", "end"))
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % 8]
        road = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{road}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) < 12:
            parts += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(WIDTH - RIGHT - 8, TOP + 16 + 16 * index, name, "end", colour))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, "middle"))
    parts.append(_text(14, TOP - 10, y_label, "start"))
    _write_svg(path, title, parts, HEIGHT)


def stacked_bars(path: str | Path, title: str, rows: list[tuple[str, dict[str, float]]]) -> None:
    """Draw one horizontal bar a row, made of named parts, each bar scaled to its own sum."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    if _wants_png(path):
        figure, axes = _figure(title)
        labels = [label for label, _ in rows]
        left = [0.0] * len(rows)
        for index, name in enumerate(names):
            widths = [row.get(name, 0) / (sum(row.values()) or 1) for _, row in rows]
            bars = axes.barh(labels, widths, left=left, color=COLOURS[index % 8], label=name)
            axes.bar_label(bars, [f"{row[name]:g}" if row.get(name) else "" for _, row in rows], label_type="center")
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, -0.2))
        _save(figure, path)
        return
    height = TOP + 30 * len(rows) + BOTTOM
    margin = 170
    parts = []
    for place, (label, row) in enumerate(rows):
        y = TOP + 30 * place
        x = float(margin)
        parts.append(_text(margin - 8, y + 17, label, "end"))
        for index, name in enumerate(names):
            width = row.get(name, 0) / (sum(row.values()) or 1) * (WIDTH - margin - RIGHT)
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="24" fill="{COLOURS[index % 8]}"/>')
            if width > 24:
                parts.append(_text(x + width / 2, y + 17, f"{row[name]:g}", "middle", "#fff"))
            x += width
    for index, name in enumerate(names):
        parts.append(_text(margin + 110 * index, height - 20, f"■ {name}", "start", COLOURS[index % 8]))
    _write_svg(path, title, parts, height)


def histograms(path: str | Path, title: str, panels: dict[str, dict[str, float]]) -> None:
    """Draw one panel of horizontal bars for each named set of counts, every panel to its own scale."""
    panels = {name: bars for name, bars in panels.items() if bars}
    if _wants_png(path):
        figure, axes = _figure(title)
        axes.remove()
        figure.suptitle(title)
        figure.set_figheight(1 + sum(0.7 + 0.25 * len(bars) for bars in panels.values()))
        for place, (name, bars) in enumerate(panels.items()):
            axes = figure.add_subplot(len(panels), 1, place + 1)
            drawn = axes.barh(list(bars), list(bars.values()), color=COLOURS[place % 8])
            axes.bar_label(drawn, [f"{count:,}" for count in bars.values()], padding=3)
            axes.set_title(name, fontsize="medium")
            axes.invert_yaxis()
            axes.margins(x=0.12)  # room for the last label
        _save(figure, path)
        return
    parts, y, margin = [], TOP, 100
    for place, (name, bars) in enumerate(panels.items()):
        parts.append(_text(margin, y + 14, name, "start"))
        y += 24
        for label, count in bars.items():
            width = count / (max(bars.values()) or 1) * (WIDTH - margin - 80)
            parts.append(_text(margin - 8, y + 14, label, "end"))
            parts.append(f'<rect x="{margin}" y="{y}" width="{width:.1f}" height="18" fill="{COLOURS[place % 8]}"/>')
            parts.append(_text(margin + width + 6, y + 14, f"{count:,}", "start"))
            y += 22
        y += 14
    _write_svg(path, title, parts, y + 10)


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from below `low` to above `high`, about `wanted` of them: steps of 1, 2 or 5 by a power of ten."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _wants_png(path: str | Path) -> bool:
    suffix = Path(path).suffix.lower()
    if suffix not in (".svg", ".png"):
        raise UsageFailure(f"{path}: a picture is .svg or .png")
    return suffix == ".png"


def _figure(title: str):  # type: ignore[no-untyped-def]
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise missing_extra("matplotlib", "plot", "a PNG picture (SVG needs nothing)") from None
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _save(figure, path: str | Path) -> None:  # type: ignore[no-untyped-def]
    with atomic(path) as stream:
        figure.savefig(stream, format="png", metadata={"Software": None})


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _write_svg(path: str | Path, title: str, parts: list[str], height: int) -> None:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        f' font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="16">{escape(title)}</text>'
    )
    with atomic(path) as stream:
        stream.write((head + "\n".join(parts) + "</svg>\n").encode())
