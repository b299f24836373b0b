"""Grades of single answers: their means by model, turn and category."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from vtools.report.reading import Grade, Graded


def summarise(graded: Graded, grades: list[Grade]) -> dict[str, Any]:
    """The means of one model as one object; grades without a score are counted and left out."""
    judge, rubric, model = graded
    turns = sorted({grade.turn for grade in grades})
    categories = sorted({grade.category for grade in grades if grade.category})
    return {
        "judge": judge,
        "rubric": rubric,
        "model": model,
        "n": len(grades),
        "unanswered": sum(grade.unanswered for grade in grades),
        "unparsed": sum(grade.score is None and not grade.unanswered for grade in grades),
        "mean": mean(grades),
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
        turns = _all(rows, "turns")
        columns = [("mean", "mean"), *(("turns", turn) for turn in turns if len(turns) > 1)]
        columns += [("categories", name) for name in _all(rows, "categories")]
        heads = [f"turn {name}" if kind == "turns" else name for kind, name in columns]
        width = max(len(name) for name in ["model", *(row["model"] for row in rows)])
        lines = [f"judge: {judge}", f"rubric: {rubric}", ""]
        named = "".join(f"  {head:>6}" for head in heads)
        lines.append(f"{'model':<{width}}  {'n':>5} {'no answer':>9} {'unparsed':>8}{named}")
        for row in rows:
            means = [row["mean"] if kind == "mean" else row[kind].get(name) for kind, name in columns]
            shown = ("-" if value is None else f"{value:.2f}" for value in means)
            cells = "".join(f"  {value:>{max(6, len(head))}}" for value, head in zip(shown, heads, strict=True))
            lines.append(f"{row['model']:<{width}}  {row['n']:>5} {row['unanswered']:>9} {row['unparsed']:>8}{cells}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _all(rows: list[dict[str, Any]], kind: str) -> list[str]:
    return sorted({name for row in rows for name in row[kind]})
