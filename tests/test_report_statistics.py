"""The statistics of `report` against independent programs: statsmodels, SciPy, evalica, ppi-python, krippendorff."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from conftest import ROOT

from vtools.report import agreement, checks, human, intervals, length_fit
from vtools.report.ratings import ELO, Game, connected, ranks, rate

GOLDEN = json.loads((ROOT / "tests" / "golden" / "report_references.json").read_text())
EXACT = {"rel": 1e-9, "abs": 1e-9}


def tournament(seed: int, models: str = "ABCD", questions: int = 30) -> list[Game]:
    """Games on questions in both orders, with ties and a judge who favours the first place."""
    dice, games = random.Random(seed), []
    strength = {model: 0.4 * place for place, model in enumerate(models)}
    for question in range(questions):
        luck = {model: dice.gauss(0, 0.7) for model in models}
        for a in models:
            for b in models:
                if a < b and dice.random() < 0.7:
                    for place in (-1, 1):
                        odds = strength[b] - strength[a] + luck[b] - luck[a] + 0.5 * place
                        tied = float(dice.random() < 0.2)
                        won = float(not tied and dice.random() < 1 / (1 + math.exp(-odds)))
                        games.append(Game(f"q{question}", "J", a, b, place, won, tied))
    return games


def test_wilsons_interval_is_that_of_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for wins, number in ((0, 20), (1, 20), (10, 20), (36, 80), (80, 80), (397, 400)):
        assert intervals.wilson(wins / number, number) == pytest.approx(
            proportion.proportion_confint(wins, number, method="wilson"), **EXACT
        )


def test_the_sign_test_and_holms_are_those_of_scipy_and_statsmodels():
    stats = pytest.importorskip("scipy.stats")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for wins, losses in ((0, 1), (3, 5), (20, 4), (0, 0), (7, 7), (600, 531)):
        wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert intervals.sign_test(wins, losses) == pytest.approx(wanted, **EXACT)
    values = [0.04, 0.001, 0.5, 0.02, 0.02, 0.9, 0.0]
    assert intervals.holm(values) == pytest.approx(list(multitest.multipletests(values, method="holm")[1]), **EXACT)
    for degrees in (19, 30, 79, 399):
        assert intervals.student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-5)


def test_fiellers_interval_ends_where_the_difference_is_as_far_from_0_as_chance_allows():
    dice = np.random.default_rng(3)
    for number in (20, 80):
        lower = dice.normal(8, 1, number)
        upper = lower + dice.normal(-0.5, 1, number)
        rows = [(str(n), upper[n], lower[n]) for n in range(number)]
        for end in intervals.ratio_interval(rows):
            off = upper - end * lower
            t = abs(off.mean()) / (off.std(ddof=1) / math.sqrt(number))
            assert t == pytest.approx(intervals.student(number - 1), **EXACT)
    assert intervals.ratio_interval([(str(n), 1.0, float(n % 2) - 0.5) for n in range(20)]) is None


def test_kappa_and_its_error_are_those_of_statsmodels():
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    dice = random.Random(4)
    rated = [(str(n), dice.choice("ab"), dice.choice("ab")) for n in range(50)]
    rated += [(str(n), each, each) for n, each in zip(range(50, 90), ["a", "b", "b", "tie"] * 10, strict=True)]
    table = [[sum(row[1:] == (x, y) for row in rated) for y in agreement.OUTCOMES] for x in agreement.OUTCOMES]
    wanted = inter_rater.cohens_kappa(table)
    value, (low, high) = agreement.kappa(rated)
    assert value == pytest.approx(wanted.kappa, **EXACT)
    half = (math.atanh(high) - math.atanh(low)) / 2 * (1 - value**2) / intervals.student(89)
    assert half == pytest.approx(wanted.std_kappa * math.sqrt(90 / 89), **EXACT)
    assert agreement.kappa([("1", "a", "a")] * 3) == (None, None)


@pytest.mark.parametrize("case", GOLDEN["alpha"])
def test_alpha_is_krippendorffs(case):
    assert agreement.alpha(case["units"]) == pytest.approx(case["alpha"], **EXACT)


@pytest.mark.parametrize("case", GOLDEN["ppi"])
def test_a_mean_corrected_by_people_and_its_error_are_those_of_ppi_python(case):
    found = human.corrected(case["people"], case["judged"], case["rest"])
    assert found.mean == pytest.approx(case["mean"], **EXACT)
    half = intervals.Z * math.sqrt(found.square)
    assert (found.mean - half, found.mean + half) == pytest.approx((case["low"], case["high"]), **EXACT)


def test_a_judge_who_says_the_same_of_everything_corrects_nothing():
    found = human.corrected([1, 0, 1, 1, 0.5], [1] * 5, [1] * 3)
    assert (found.mean, found.trust) == (pytest.approx(0.7), 0)


def fitted(games: list[Game], baseline: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Models, ratings and clustered errors relative to a model, at last those of the first place, by statsmodels."""
    sm = pytest.importorskip("statsmodels.api")
    columns = sorted({model for g in games for model in (g.a, g.b)} - {baseline})
    design = [[(g.b == m) - (g.a == m) for m in columns] + [g.place] for g in games]
    model = sm.GLM([g.won + g.tied / 2 for g in games], np.array(design, float), family=sm.families.Binomial())
    clusters = {"groups": [int(g.question[1:]) for g in games], "df_correction": False, "use_correction": False}
    wanted = model.fit(tol=1e-14, maxiter=200, cov_type="cluster", cov_kwds=clusters)
    number = len({g.question for g in games})
    return columns, wanted.params, wanted.bse * math.sqrt(number / (number - 1))


@pytest.mark.parametrize("seed", range(3))
def test_ratings_and_their_clustered_errors_are_those_of_statsmodels(seed):
    games = tournament(seed)
    (found,) = rate(games, baseline="A")
    columns, values, errors = fitted(games, "A")
    own = [math.sqrt(found.covariance[found.models.index(m)][found.models.index(m)]) for m in columns]
    assert [*(found.values[m] for m in columns), found.first["J"]] == pytest.approx(list(values), **EXACT)
    assert [*own, found.first_error["J"]] == pytest.approx(list(errors), **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_fits_relative_to_each_model(seed):
    stats = pytest.importorskip("scipy.stats")
    games = tournament(seed, "ABCDEF")
    (found,) = rate(games)
    far = stats.norm.ppf(1 - 0.025 / 5) / stats.norm.ppf(0.975) * stats.t.ppf(0.975, 29)
    for model, (best, worst) in ranks(found).items():
        _, values, errors = fitted(games, model)
        leads = (values / errors)[:-1]
        assert (best, worst) == (1 + sum(leads > far), 6 - sum(leads < -far))
    assert len(set(ranks(found).values())) > 1


@pytest.mark.parametrize("seed", range(3))
def test_ratings_are_the_bradley_terry_scores_of_evalica(seed):
    evalica = pytest.importorskip("evalica")
    games = [game._replace(place=0) for game in tournament(seed)]
    (found,) = rate(games, baseline="A")
    winners = [evalica.Winner.Draw if g.tied else evalica.Winner.Y if g.won else evalica.Winner.X for g in games]
    scores = evalica.bradley_terry([g.a for g in games], [g.b for g in games], winners, tolerance=1e-13, limit=10**6).scores  # fmt: skip
    for model in "BCD":
        assert found.values[model] == pytest.approx(math.log(scores[model] / scores["A"]), **EXACT)


def most_likely(loss: Callable[[np.ndarray], complex], size: int) -> np.ndarray:
    """Where a loss has no slope; its slopes, by steps along the imaginary axis, are exact to the last digits.

    Source: Squire and Trapp, Using complex variables to estimate derivatives of real functions, SIAM Review 40 (1998).
    """
    optimize = pytest.importorskip("scipy.optimize")

    def slopes(values: np.ndarray) -> list[float]:
        return [loss(values + 1e-30j * step).imag / 1e-30 for step in np.eye(size)]

    found = optimize.root(slopes, np.zeros(size), tol=1e-14)
    assert slopes(found.x) == pytest.approx([0] * size, abs=1e-9)
    return found.x


@pytest.mark.parametrize("seed", range(2))
def test_davidsons_ratings_have_the_greatest_likelihood(seed):
    games = tournament(seed)
    (found,) = rate(games, davidson=True, baseline="A")

    def loss(values):
        total = 0.0
        strength = dict(zip("ABCD", [0, *values[:3]], strict=True))
        for g in games:
            log_odds = strength[g.b] - strength[g.a] + values[3] * g.place
            ways = [np.exp(log_odds / 2), np.exp(-log_odds / 2), np.exp(values[4])]
            total -= np.log(ways[2 if g.tied else 0 if g.won else 1] / sum(ways))
        return total

    own = [*(found.values[m] for m in "BCD"), found.first["J"], math.log(found.ties)]
    assert own == pytest.approx(list(most_likely(loss, 5)), **EXACT)
    assert 0.3 < found.ties < 0.7  # one game in five is a tie


def test_the_fit_of_length_has_the_greatest_likelihood():
    dice = np.random.default_rng(6)
    model, question = np.repeat(np.arange(5), 25), np.tile(np.arange(25), 5)
    longer = np.tanh(dice.normal(0, 1, 125))
    odds = 0.3 * model + 1.2 * longer + dice.normal(0, 1, 25)[question] - 1
    won = dice.binomial(2, 1 / (1 + np.exp(-odds))) / 2
    won[model == 4] = 1.0  # a model that wins everything
    found = length_fit.fit(model, question, longer, won)

    def loss(values):
        odds = values[model] + values[5] * longer + values[6:][question]
        penalty = 0.01 * np.sum(values[:6] ** 2) + np.sum(values[6:] ** 2)
        return np.sum(np.log(1 + np.exp(odds)) - won * odds) + penalty / 2

    own = [*found.strengths, found.effect, *found.questions]
    assert own == pytest.approx(list(most_likely(loss, 31)), **EXACT)
    assert 0.4 < found.effect < 2


def test_models_that_no_game_connects_have_ratings_of_their_own_and_one_that_always_wins_has_no_bound():
    games = tournament(1) + [game._replace(a="X", b="Y") for game in tournament(2, "AB")]
    first, second = rate(games)
    assert set(first.models) == set("ABCD") and set(second.models) == {"X", "Y"}
    best = [Game(f"q{n}", "J", model, "Z", place, 1.0, 0.0) for n in range(30) for model in "AB" for place in (-1, 1)]
    (found,) = rate(tournament(1) + best)
    assert found.unbounded == {"Z"} and max(found.values, key=found.values.get) == "Z"
    (plain,) = rate(tournament(1), baseline=found.baseline)
    assert all(found.values[m] == pytest.approx(plain.values[m], abs=0.02) for m in "ABCD")
    assert connected([("a", "b"), ("c", "d"), ("b", "e")]) == [["a", "b", "e"], ["c", "d"]]


def test_a_rank_is_known_as_far_as_other_models_are_surely_better_or_worse():
    dice = random.Random(5)
    chances = {("A", "B"): 0.5, ("A", "C"): 0.1, ("B", "C"): 0.1}  # that the second wins
    games = [
        Game(f"q{n}", "J", a, b, place, float(dice.random() < chance), 0.0)
        for n in range(60) for (a, b), chance in chances.items() for place in (-1, 1)
    ]  # fmt: skip
    (found,) = rate(games)
    assert ranks(found) == {"A": (1, 2), "B": (1, 2), "C": (3, 3)}
    assert ranks(rate(games[:90])[0]) is None  # 15 questions
    assert ELO * math.log(10) == pytest.approx(400)


def test_pass_at_k_is_the_chance_that_one_of_k_answers_drawn_without_replacement_passes():
    questions = {"1": [True, False, False, False], "2": [False] * 4, "3": [True] * 5}
    found = checks.summarise("M", questions)
    assert {k: each["rate"] for k, each in found["pass"].items()} == pytest.approx(
        {"1": (0.25 + 0 + 1) / 3, "2": (0.5 + 0 + 1) / 3, "4": 2 / 3}
    )
