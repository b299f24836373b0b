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


def by_rubric(tables: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The summaries of each judge and rubric, the best model first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for table in tables:
        found.setdefault((table["judge"], table["rubric"]), []).append(table)
    return {key: sorted(own, key=lambda table: -(table["mean"] or 0)) for key, own in found.items()}


def mean(grades: Iterable[Grade]) -> float | None:
    """The mean score, None if there is none."""
    scores = [grade.score for grade in grades if grade.score is not None]
    return fmean(scores) if scores else None
