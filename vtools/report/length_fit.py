# ruff: noqa: TID253  imported only once there are enough models
"""Win rates of several models against one baseline, adjusted for the length of their answers.

The log-odds that a model wins a question are its strength, plus the effect of its answer's length beside the
baseline's, plus how easy the baseline makes that question. The adjusted rate is the mean over questions of the chance
without the effect of length. Easy questions have short and long answers of all models, so that without their effects a
rate adjusted for length is further from published ones than one that is not; that takes several models to a question.
It has no interval, and is not AlpacaEval's length-controlled rate, which has fitted parameters of its own.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtools.report.units import Judgments, Rule

LEAST_MODELS = 5
STEPS, TOLERANCE = 100, 1e-12


class Length(NamedTuple):
    """The fit: strengths of the models, the effect of length, and effects of the questions, in log-odds."""

    strengths: NDArray[Any]
    effect: float
    questions: NDArray[Any]


def fit(model: NDArray[Any], question: NDArray[Any], longer: NDArray[Any], won: NDArray[Any]) -> Length:
    """Fit games: the numbers of the model and of the question, how much longer (-1 to 1), and the share won.

    The greatest likelihood, with a normal distribution of variance 1 of the effects of questions, and as wide a one as
    100 of the others, so that a model that wins everything has a strength.
    """
    models, questions = int(model.max()) + 1, int(question.max()) + 1
    size = models + 1 + questions
    design = np.zeros((len(won), size))
    games = np.arange(len(won))
    design[games, model] = 1
    design[:, models] = longer
    design[games, models + 1 + question] = 1
    penalty = np.concatenate([np.full(models + 1, 0.01), np.ones(questions)])
    values = np.zeros(size)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-design @ values))
        slope = design.T @ (won - chance) - penalty * values
        bend = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        values = values + step / max(1.0, float(np.abs(step).max()) / 2)
        if float(np.abs(step).max()) < TOLERANCE:
            break
    return Length(values[:models], float(values[models]), values[models + 1 :])


def adjusted(judgments: Judgments, rule: Rule, baseline: str | None = None) -> list[dict[str, Any]]:
    """For each judge, the rates of five models or more against the baseline, as they are and adjusted.

    The baseline is the given model, else the one that is in all of the judge's pairs.
    """
    everywhere: dict[str, set[str]] = {}
    for judge, *models in judgments.pairs:
        everywhere[judge] = everywhere.get(judge, set(models)) & set(models)
    against: dict[tuple[str, str], dict[str, list[tuple[str, float, float]]]] = {}
    for (judge, a, b), units in judgments.pairs.items():
        for unit in units.values():
            share = None if unit.unanswered else unit.share(rule)
            if share is None or unit.lengths is None:
                continue
            more = unit.lengths[1] - unit.lengths[0]
            against.setdefault((judge, a), {}).setdefault(b, []).append((unit.question, more, share))
            against.setdefault((judge, b), {}).setdefault(a, []).append((unit.question, -more, 1 - share))
    return [
        _adjusted(judge, base, models)
        for (judge, base), models in against.items()
        if len(models) >= LEAST_MODELS and (base == baseline or (baseline is None and base in everywhere[judge]))
    ]


def _adjusted(judge: str, baseline: str, models: dict[str, list[tuple[str, float, float]]]) -> dict[str, Any]:
    names = {name: place for place, name in enumerate(models)}
    games = [(names[name], *game) for name, own in models.items() for game in own]
    places = {question: place for place, question in enumerate(dict.fromkeys(game[1] for game in games))}
    more = np.array([game[2] for game in games])
    spread = float(more.std()) or 1.0
    model, question = np.array([game[0] for game in games]), np.array([places[game[1]] for game in games])
    found = fit(model, question, np.tanh(more / spread), np.array([game[3] for game in games]))
    rows: list[dict[str, Any]] = []
    for name, place in names.items():
        asked = question[model == place]
        chance = 1 / (1 + np.exp(-(found.strengths[place] + found.questions[asked])))
        share = math.fsum(game[3] for game in games if game[0] == place) / len(asked)
        rows.append({"model": name, "win_rate": share, "adjusted": float(chance.mean()), "n": len(asked)})
    rows.sort(key=lambda row: row["adjusted"], reverse=True)
    return {"judge": judge, "baseline": baseline, "effect": found.effect, "models": rows}
