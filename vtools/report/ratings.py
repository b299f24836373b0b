# ruff: noqa: TID253  imported only once there are three models
"""Ratings of several models by one generalised linear model of all verdicts, with intervals of ratings and ranks.

The log-odds that b wins a game are the rating of b less that of a, plus the judge's advantage of the place shown first
(plus, on request, other effects). A tie is half a win of each (Bradley and Terry, Biometrika 39, 1952), or by
`davidson` an outcome of its own, with one parameter for how common ties are (Davidson, JASA 65, 1970). Errors are
clustered by question (Liang and Zeger, Biometrika 73, 1986).

Its own Newton steps, as importing a library for them takes longer and more memory than all of a report.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtools.report.intervals import LEAST, student

Array = NDArray[Any]
ELO = 400 / math.log(10)  # points of rating per unit of log-odds: 400 points are odds of ten to one
RIDGE = 0.01  # where a model wins or loses everything, its rating is infinite without
STEPS, TOLERANCE, FAR = 100, 1e-13, 15.0


class Game(NamedTuple):
    """What b wins against a in one order of one question: of all verdicts, the shares that are wins and ties."""

    question: str
    judge: str
    a: str
    b: str
    place: int  # 1 if b's answer is shown first, -1 if a's, 0 if that is not known
    won: float
    tied: float
    weight: float = 1.0
    effects: tuple[float, ...] = ()  # further differences of b to a, such as of length


@dataclass(slots=True)
class Fit:
    """Parameters at the greatest likelihood, and their covariance, clustered by question."""

    values: Array
    covariance: Array
    ridged: bool
    questions: int


@dataclass(slots=True)
class Ratings:
    """The ratings of models that are connected by games, relative to the baseline."""

    models: list[str]
    baseline: str
    values: dict[str, float]  # log-odds against the baseline
    covariance: Array  # of the models, in their order; the baseline's is 0
    first: dict[str, float]  # by judge, the log-odds that being shown first adds
    first_error: dict[str, float]
    effects: list[tuple[float, float]]  # of each effect, its log-odds and standard error
    ties: float | None  # Davidson's parameter
    unbounded: set[str]  # models that win or lose everything against the others
    questions: int
    games: dict[str, float] = field(default_factory=dict)


def newton(design: Array, won: Array, tied: Array, weight: Array, clusters: Array, davidson: int, ridge: float) -> Fit:
    """Fit the model: a row per game, the last parameter is the log of Davidson's, if asked for.

    With T the wins less losses halved and the ties, both models have the gradient T - E[T] and Fisher's information
    Var[T]; without Davidson, a tie is half a win, and there is only the first.
    """
    size = design.shape[1] + davidson
    full = np.column_stack([design, np.zeros((len(design), davidson))])
    tie_row = np.column_stack([np.zeros_like(design), np.ones((len(design), davidson))])
    values = np.zeros(size)
    penalty = np.full(size, ridge)
    scores, information, old = full, np.eye(size), -math.inf
    for _ in range(STEPS):
        log_odds = full @ values
        if davidson:
            half = np.exp(log_odds / 2)
            total = half + 1 / half + math.exp(values[-1])
            b, a, tie = half / total, 1 / half / total, math.exp(values[-1]) / total
            off, tie_off = (won - (1 - won - tied) - (b - a)) / 2, tied - tie
            scores = (full * off[:, None] + tie_row * tie_off[:, None]) * weight[:, None]
            spread = ((a + b - (b - a) ** 2) / 4, tie * (1 - tie), -(b - a) * tie / 2)
            cross = (full * (spread[2] * weight)[:, None]).T @ tie_row
            information = (full * (spread[0] * weight)[:, None]).T @ full + cross + cross.T
            information += (tie_row * (spread[1] * weight)[:, None]).T @ tie_row
        else:
            chance = 1 / (1 + np.exp(-log_odds))
            scores = full * ((won + tied / 2 - chance) * weight)[:, None]
            information = (full * (chance * (1 - chance) * weight)[:, None]).T @ full
        step = np.linalg.lstsq(information + np.diag(penalty), scores.sum(axis=0) - penalty * values, rcond=None)[0]
        values = values + step / max(1.0, float(np.abs(step).max()) / 2)
        size_of_step = float(np.abs(step).max(initial=0))
        if size_of_step < TOLERANCE or (size_of_step < 1e-9 and size_of_step >= old) or np.abs(values).max() > FAR:
            break
        old = size_of_step
    if not ridge and np.abs(values).max(initial=0) > FAR:
        return newton(design, won, tied, weight, clusters, davidson, RIDGE)
    number = int(clusters.max()) + 1
    sums = np.zeros((number, size))
    np.add.at(sums, clusters, scores)
    inverse = np.linalg.pinv(information + np.diag(penalty))
    covariance = inverse @ (sums.T @ sums) @ inverse * number / max(number - 1, 1)
    return Fit(values, covariance, bool(ridge), number)


def rate(games: Sequence[Game], davidson: bool = False, baseline: str | None = None) -> list[Ratings]:
    """The ratings of the models of each group that games connect; ratings of different groups do not compare.

    The baseline of a group is the given one, or the model with the most games, the first of these.
    """
    found = []
    for group in connected([(game.a, game.b) for game in games]):
        own = [game for game in games if game.a in group]
        counts = {model: 0.0 for model in group}
        for game in own:
            counts[game.a] += game.weight
            counts[game.b] += game.weight
        base = baseline if baseline in counts else max(counts, key=counts.__getitem__)
        found.append(_rate(own, counts, base, davidson))
    return found


def _rate(games: Sequence[Game], counts: dict[str, float], baseline: str, davidson: bool) -> Ratings:
    models = list(counts)
    others = {model: place for place, model in enumerate(model for model in models if model != baseline)}
    judges = {judge: place for place, judge in enumerate(dict.fromkeys(game.judge for game in games if game.place))}
    effects = len(games[0].effects)
    design = np.zeros((len(games), len(others) + len(judges) + effects))
    for row, game in zip(design, games, strict=True):
        if game.b in others:
            row[others[game.b]] += 1
        if game.a in others:
            row[others[game.a]] -= 1
        if game.place:
            row[len(others) + judges[game.judge]] = game.place
        row[len(others) + len(judges) :] = game.effects
    names = {question: place for place, question in enumerate(dict.fromkeys(game.question for game in games))}
    won, tied, weight = (np.array([getattr(game, name) for game in games]) for name in ("won", "tied", "weight"))
    clusters = np.array([names[game.question] for game in games])
    beaten = [(game.b, game.a) for game in games if game.won or game.tied]
    beaten += [(game.a, game.b) for game in games if game.won + game.tied < 1 or game.tied]
    bounded = strongly_connected(beaten)
    unbounded = set(models) - max(bounded, key=lambda each: (len(each), baseline in each))
    fit = newton(design, won, tied, weight, clusters, int(davidson), RIDGE if unbounded else 0.0)
    order = [others.get(model) for model in models]
    covariance = np.zeros((len(models), len(models)))
    for i, first in enumerate(order):
        for j, second in enumerate(order):
            if first is not None and second is not None:
                covariance[i, j] = fit.covariance[first, second]
    errors = np.sqrt(np.diag(fit.covariance).clip(0))
    places = {judge: len(others) + place for judge, place in judges.items()}
    rest = range(len(others) + len(judges), len(others) + len(judges) + effects)
    return Ratings(
        models,
        baseline,
        {model: 0.0 if place is None else float(fit.values[place]) for model, place in zip(models, order, strict=True)},
        covariance,
        {judge: float(fit.values[place]) for judge, place in places.items()},
        {judge: float(errors[place]) for judge, place in places.items()},
        [(float(fit.values[place]), float(errors[place])) for place in rest],
        math.exp(fit.values[-1]) if davidson else None,
        unbounded,
        fit.questions,
        counts,
    )


def ranks(found: Ratings) -> dict[str, tuple[int, int]] | None:
    """The ranks that each model may have, the best is 1: between the number of models that are surely better and of
    those surely worse. None of fewer than 20 questions.

    Surely is by the difference of two ratings, at 5 % shared out among the comparisons of a model with all others
    (Bonferroni), so that a model's true rank is among these in at least 95 %. Ratings without bounds tell nothing here.
    """
    if found.questions < LEAST:
        return None
    far = NormalDist().inv_cdf(1 - 0.025 / max(len(found.models) - 1, 1)) / NormalDist().inv_cdf(0.975)
    far *= student(found.questions - 1)
    result = {}
    for i, model in enumerate(found.models):
        above = below = 0
        for j, other in enumerate(found.models):
            if i == j or {model, other} & found.unbounded:
                continue
            c = found.covariance
            error = math.sqrt(max(float(c[i, i] + c[j, j] - 2 * c[i, j]), 0.0))
            lead = found.values[other] - found.values[model]
            above += lead > far * error
            below += -lead > far * error
        result[model] = (1 + above, len(found.models) - below)
    return result


def connected(edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The groups of models that games connect, each in the order in which its models come first; the largest first."""
    parent: dict[str, str] = {}

    def root(model: str) -> str:
        while parent[model] != model:
            parent[model] = parent[parent[model]]
            model = parent[model]
        return model

    for a, b in edges:
        parent.setdefault(a, a)
        parent.setdefault(b, b)
        parent[root(a)] = root(b)
    groups: dict[str, list[str]] = {}
    for model in parent:
        groups.setdefault(root(model), []).append(model)
    return sorted(groups.values(), key=len, reverse=True)


def strongly_connected(edges: Sequence[tuple[str, str]]) -> list[set[str]]:
    """The sets of models of which each has beaten, or tied with, each other one by way of others.

    Within such a set the ratings are finite. Source: Ford, American Mathematical Monthly 64 (1957).
    """
    ahead: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for a, b in set(edges):
        ahead.setdefault(a, set()).add(b)
        back.setdefault(b, set()).add(a)
    left, found = dict.fromkeys([*ahead, *back]), []
    while left:
        start = next(iter(left))
        both = _reached(start, ahead) & _reached(start, back)
        found.append(both)
        left = {model: None for model in left if model not in both}
    return found


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        for model in edges.get(waiting.pop(), set()) - found:
            found.add(model)
            waiting.append(model)
    return found
