"""A win rate corrected by people's votes on some of the questions: prediction-powered inference."""

import math
from collections.abc import Sequence
from statistics import fmean, pvariance, variance
from typing import Any, NamedTuple

from vtools.report import agreement
from vtools.report.intervals import LEAST, Estimate
from vtools.report.units import Judgments, Pair, Rule, Unit


class Corrected(NamedTuple):
    """A mean that people's labels correct, the square of its standard error, and how far the judge is trusted."""

    mean: float
    square: float
    trust: float


def corrected(people: Sequence[float], judged: Sequence[float], rest: Sequence[float]) -> Corrected:
    """The mean of what people say, of n labelled questions (at least 2), which a judge saw too, and the `rest`, which
    only the judge saw.

    It is the judge's mean of the rest, plus what people say beyond him on the labelled ones, with his part weighted by
    `trust`, 0 to 1, such that the variance is least. Source: Angelopoulos, Duchi and Zrnic, PPI++: Efficient
    Prediction-Powered Inference (arXiv 2311.01453), example of the mean.
    """
    n, number = len(people), len(rest)
    if not number:
        return Corrected(fmean(people), pvariance(people) / n, 0.0)
    middle, other = fmean(people), fmean(judged)
    shared = math.fsum((x - middle) * (y - other) for x, y in zip(people, judged, strict=True)) / n
    spread = (1 + n / number) * variance([*judged, *rest])
    trust = min(1.0, max(0.0, shared / spread)) if spread else 0.0
    beyond = [x - trust * y for x, y in zip(people, judged, strict=True)]
    square = trust * trust * pvariance(rest) / number + pvariance(beyond) / n
    return Corrected(trust * fmean(rest) + fmean(beyond), square, trust)


def calibrate(judgments: Judgments, votes: Judgments, rule: Rule) -> dict[Pair, dict[str, Any]]:
    """For each pair of models that people voted on: b's win rate as they correct it, and how far the judge agrees.

    A question counts once, with the mean of its turns. People's share of it is the mean of their votes.
    """
    found = {}
    for pair, units in judgments.pairs.items():
        _, a, b = pair
        for (_, first, second), voted in votes.pairs.items():
            if {first, second} == {a, b}:
                same = agreement.compared(units, voted, rule, turned=first == b)
                if same:
                    found[pair] = _calibrated(units, voted, same, rule, turned=first == b)
    return found


def _calibrated(
    units: dict[str, Unit],
    voted: dict[str, Unit],
    same: Sequence[tuple[str, Unit, Unit, agreement.Rated]],
    rule: Rule,
    turned: bool,
) -> dict[str, Any]:
    people: dict[str, list[float]] = {}
    judged: dict[str, list[float]] = {}
    for _, unit, twin, _ in same:
        share = twin.share() or 0.0
        people.setdefault(unit.question, []).append(1 - share if turned else share)
        judged.setdefault(unit.question, []).append(unit.share(rule) or 0.0)
    rest: dict[str, list[float]] = {}
    for unit in units.values():
        alone = None if unit.unanswered or unit.question in people else unit.share(rule)
        if alone is not None:
            rest.setdefault(unit.question, []).append(alone)
    labels, seen = [fmean(each) for each in people.values()], [fmean(each) for each in judged.values()]
    result: dict[str, Any] = {
        "questions": len(labels),
        "people": fmean(labels),
        "judge": fmean(seen),
        "win_rate": None,
        "win_rate_ci": None,
        "trust": None,
        **agreement.agreed([each for *_, each in same]),
        "ceiling": agreement.ceiling(voted.values()),
    }
    if len(labels) > 1:
        n = len(labels)
        fit = corrected(labels, seen, [fmean(each) for each in rest.values()])
        result |= {"win_rate": min(1.0, max(0.0, fit.mean)), "trust": fit.trust}
        if n >= LEAST:
            result["win_rate_ci"] = Estimate(fit.mean, fit.square * n / (n - 1), n).interval
    return result
