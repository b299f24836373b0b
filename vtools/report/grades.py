"""Grades of single answers: their means by model, turn and category."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from vtools.report.intervals import mean_interval
from vtools.report.units import Grade, Graded


def summarise(graded: Graded, grades: list[Grade]) -> dict[str, Any]:
    """The means of one model as one object; grades without a score are counted and left out."""
    judge, rubric, model = graded
    turns = sorted({grade.turn for grade in grades})
    categories = sorted({grade.category for grade in grades if grade.category})
    scored = [(grade.question, grade.score, 1.0) for grade in grades if grade.score is not None]
    return {
        "judge": judge,
        "rubric": rubric,
        "model": model,
        "n": len(grades),
        "unanswered": sum(grade.unanswered for grade in grades),
        "unparsed": sum(grade.score is None and not grade.unanswered for grade in grades),
        "mean": mean(grades),
        "mean_ci": mean_interval(scored),
        "turns": {str(turn): mean(grade for grade in grades if grade.turn == turn) for turn in turns},
        "categories": {name: mean(grade for grade in grades if grade.category == name) for name in categories},
    }


def mean(grades: Iterable[Grade]) -> float | None:
    """The mean score, None if there is none."""
    scores = [grade.score for grade in grades if grade.score is not None]
    return fmean(scores) if scores else None


def text(tables: list[dict[str, Any]]) -> str:
    """The means of several models, one judge and rubric after the other: a line per model, the best first."""
    blocks = []
    for judge, rubric in dict.fromkeys((table["judge"], table["rubric"]) for table in tables):
        rows = [table for table in tables if (table["judge"], table["rubric"]) == (judge, rubric)]
        rows.sort(key=lambda row: -(row["mean"] or 0))
        turns, categories = _all(rows, "turns"), _all(rows, "categories")
        turns = turns if len(turns) > 1 else []
        width = max(len(name) for name in ["model", *(row["model"] for row in rows)])
        heads = ["mean", "95 %", *(f"turn {turn}" for turn in turns), *categories]
        cells = [
            [
                _shown(row["mean"]),
                "-" if row["mean_ci"] is None else " to ".join(map(_shown, row["mean_ci"])),
                *(_shown(row["turns"].get(turn)) for turn in turns),
                *(_shown(row["categories"].get(name)) for name in categories),
            ]
            for row in rows
        ]
        widths = [max(6, *map(len, column)) for column in zip(heads, *cells, strict=True)]
        lines = [f"judge: {judge}", f"rubric: {rubric}", ""]
        lines.append(f"{'model':<{width}}  {'n':>5} {'no answer':>9} {'unparsed':>8}{_aligned(heads, widths)}")
        for row, shown in zip(rows, cells, strict=True):
            counts = f"{row['n']:>5} {row['unanswered']:>9} {row['unparsed']:>8}"
            lines.append(f"{row['model']:<{width}}  {counts}{_aligned(shown, widths)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _all(rows: list[dict[str, Any]], kind: str) -> list[str]:
    return sorted({name for row in rows for name in row[kind]})
