"""How certain measures are: intervals by resampling whole questions."""

import random
from collections.abc import Iterable, Sequence

RESAMPLES = 2000


def resampled(
    rows: Iterable[tuple[str, Sequence[float]]], ratios: Sequence[tuple[int, int]], seed: int
) -> list[list[float] | None]:
    """95 % percentile bootstrap intervals of ratios of sums, from 2,000 resamples of whole questions.

    Each row has its question and the numbers to sum; a ratio names the columns of its upper and its lower sum. There is
    no interval where one question is all there is.
    """
    questions: dict[str, list[Sequence[float]]] = {}
    for question, numbers in rows:
        questions.setdefault(question, []).append(numbers)
    sums = [[sum(column) for column in zip(*each, strict=True)] for each in questions.values()]
    dice = random.Random(seed)
    drawn: list[list[float]] = [[] for _ in ratios]
    for _ in range(RESAMPLES if len(sums) > 1 else 0):
        total = [sum(column) for column in zip(*dice.choices(sums, k=len(sums)), strict=True)]
        for values, (upper, lower) in zip(drawn, ratios, strict=True):
            if total[lower]:
                values.append(total[upper] / total[lower])
    return [_ends(values) for values in drawn]


def _ends(values: list[float]) -> list[float] | None:
    """The 2.5th and 97.5th percentile."""
    if not values:
        return None
    values = sorted(values)
    return [values[int(0.025 * (len(values) - 1))], values[int(0.975 * (len(values) - 1))]]
