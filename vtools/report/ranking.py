"""All models on one scale: the games of all judgments, and their ratings as an object."""

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from vtools.report import style
from vtools.report.intervals import LEAST, student
from vtools.report.units import Judgments, Rule, Unit


def available() -> bool:
    """Whether there is NumPy, of the extra `report`."""
    return importlib.util.find_spec("numpy") is not None


def ratings(judgments: Judgments, davidson: bool, baseline: str | None) -> list[dict[str, Any]]:
    """The ratings of each group of models that judgments connect, of three models or more.

    None without NumPy, of the extra `report`.
    """
    models = {model for _, *both in judgments.pairs for model in both}
    if len(models) < 3 or not available():
        return []
    from vtools.report.ratings import rate

    played = list(games(judgments))
    every, units = [game for game, _ in played], [unit for _, unit in played]
    found = [shown(group) for group in rate(every, davidson, baseline)]
    names, styled = style.games(every, units)
    for group, fitted in zip(found, rate(styled, davidson, baseline) if names else [], strict=False):
        group["style"] = {
            name: _effect(each, fitted.questions) for name, each in zip(names, fitted.effects, strict=True)
        }
    return found


def by_length(judgments: Judgments, rule: Rule, baseline: str | None) -> list[dict[str, Any]]:
    """Win rates adjusted for length, where five models or more were compared with one. None without NumPy."""
    if len({model for _, *both in judgments.pairs for model in both}) < 6 or not available():
        return []
    from vtools.report.length_fit import adjusted

    return adjusted(judgments, rule, baseline)


def _effect(found: tuple[float, float], questions: int) -> dict[str, Any]:
    """How often of two equal answers the one with more of it by one standard deviation wins, with its interval."""
    value, error = found
    far = student(questions - 1) * error if questions >= LEAST else math.nan
    ends = None if math.isnan(far) else [chance(value - far), chance(value + far)]
    return {"wins": chance(value), "wins_ci": ends}


def games(judgments: Judgments) -> Iterator[tuple[Any, Unit]]:
    """A game for each question, judge and order, with the mean of its verdicts; and what it is of."""
    from vtools.report.ratings import Game

    for (judge, a, b), units in judgments.pairs.items():
        for unit in units.values():
            if unit.unanswered:
                continue
            for order, said in unit.orders():
                known = [each for each in said if each.verdict]
                if known:
                    won, tied = (sum(each.verdict == side for each in known) / len(known) for side in ("b", "tie"))
                    weight = sum(each.games for each in known) / len(known)
                    place = {"ab": -1, "ba": 1}.get(order, 0)
                    yield Game(unit.question, judge, a, b, place, won, tied, weight), unit


def shown(found: Any) -> dict[str, Any]:
    """One group's ratings as an object: the best model first, with 400 points for odds of ten to one."""
    from vtools.report.ratings import ELO, ranks

    enough = found.questions >= LEAST
    t = student(found.questions - 1) if enough else math.nan
    places = ranks(found) or {}
    rows = []
    for number, model in enumerate(found.models):
        value, error = found.values[model], math.sqrt(max(0.0, float(found.covariance[number, number])))
        ends = [value - t * error, value + t * error]
        certain = enough and model not in found.unbounded and model != found.baseline
        rows.append({
            "model": model, "rating": ELO * value, "rating_ci": [ELO * end for end in ends] if certain else None,
            "win_rate": chance(value), "win_rate_ci": [*map(chance, ends)] if certain else None,
            "rank": list(places[model]) if model in places else None, "games": found.games[model],
            "unbounded": model in found.unbounded,
        })  # fmt: skip
    rows.sort(key=lambda row: -row["rating"])
    first = {
        judge: {
            "wins": chance(value),
            "wins_ci": [chance(value + sign * t * found.first_error[judge]) for sign in (-1, 1)] if enough else None,
        }
        for judge, value in found.first.items()
    }
    return {
        "baseline": found.baseline, "questions": found.questions, "models": rows, "first_place": first,
        "style": {}, "ties": "half a win each" if found.ties is None else "davidson", "tie_parameter": found.ties,
    }  # fmt: skip


def chance(value: float) -> float:
    """The probability of these log-odds."""
    return 1 / (1 + math.exp(-value))
