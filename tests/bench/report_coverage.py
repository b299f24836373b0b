"""How often the 95 % intervals of `vtools report` hold the truth, on simulated verdicts that questions cluster.

    python tests/bench/report_coverage.py [--draws N]

A question has a chance of its own, beta-distributed around the truth with an intraclass correlation, and its verdicts
(turns, orders) share it. Printed are the percentages for the shares .05, .5 and .95 (of ratings: the win rate against
the baseline), of 20, 80 and 400 questions. Each cell has a standard error of 0.5 points at 2,000 draws.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from vtools.report import agreement, human, intervals
from vtools.report.ranking import shown
from vtools.report.ratings import Game, rate

SHARES, QUESTIONS = (0.05, 0.5, 0.95), (20, 80, 400)
dice = np.random.default_rng(20)
Rows = list[tuple[str, float, float]]
Held = Callable[[float, int], float | None]  # one draw: whether the interval holds the truth, as 0 or 1


def chances(share: float, number: int, correlation: float) -> np.ndarray:
    size = 1 / correlation - 1
    return dice.beta(share * size, (1 - share) * size, number)


def rows(values: np.ndarray) -> Rows:
    return [(str(question), float(value), 1.0) for question, own in enumerate(values) for value in own]


def holds(ends: list[float] | None, truth: float) -> float:
    assert ends is not None
    return float(ends[0] <= truth <= ends[1])


def share(turns: int, orders: int, correlation: float) -> Held:
    def draw(truth: float, number: int) -> float:
        own = chances(truth, number, correlation)[:, None, None]
        return holds(
            intervals.estimate(rows((dice.random((number, turns, orders)) < own).mean(axis=2))).interval, truth
        )

    return draw


def uneven(truth: float, number: int) -> float:
    """From one to five turns to a question."""
    own, turns = chances(truth, number, 0.4), dice.integers(1, 6, number)
    return holds(intervals.estimate((str(n), float(dice.random() < own[n]), 1.0) for n in range(number) for _ in range(turns[n])).interval, truth)  # fmt: skip


def scores(low: bool, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores from 1 to 10 of two answers to each question; `low` ones are mostly 1."""
    if low:
        a, b = 10 * dice.beta(0.3, 2, number), 10 * dice.beta(0.4, 2, number)
    else:
        level = dice.normal(7.5, 1.5, number)
        a, b = level + dice.normal(0, 1, number), level + dice.normal(-0.5, 1.2, number)
        a, b = np.where(dice.random(number) < 0.05, 1, a), np.where(dice.random(number) < 0.08, 1, b)
    return np.clip(np.round(a), 1, 10), np.clip(np.round(b), 1, 10)


def of_scores(low: bool, ratio: bool) -> Held:
    a, b = scores(low, 2_000_000)
    truth = b.sum() / a.sum() if ratio else b.mean()

    def draw(_: float, number: int) -> float:
        a, b = scores(low, number)
        found = [(str(n), b[n], a[n] if ratio else 1.0) for n in range(number)]
        return holds((intervals.ratio_interval if ratio else intervals.mean_interval)(found), truth)

    return draw


def corrected(truth: float, number: int) -> float:
    """People's votes on `number` questions, the judge's verdicts on five times as many; he errs in one of five."""
    every = 6 * number
    people = (dice.random(every) < truth).astype(float)
    judged = np.where(dice.random(every) < 0.2, dice.random(every) < 0.5, people).astype(float)
    fit = human.corrected(people[:number].tolist(), judged[:number].tolist(), judged[number:].tolist())
    variance = fit.square * number / (number - 1)
    return holds(intervals.Estimate(fit.mean, variance, number).interval, truth)


def kappa(truth: float, number: int) -> float | None:
    """Two judges of which each keeps to a common outcome in eight of ten; two turns to a question."""
    true_kappa = 0.64  # 0.8 squared, whatever the share, as they otherwise draw from the same share
    common = dice.random((number, 2)) < truth
    said = [np.where(dice.random((number, 2)) < 0.8, common, dice.random((number, 2)) < truth) for _ in "xy"]
    rated = [(str(q), "ab"[int(said[0][q, t])], "ab"[int(said[1][q, t])]) for q in range(number) for t in range(2)]
    _, ends = agreement.kappa(rated)
    return None if ends is None else holds(ends, true_kappa)


def games(truth: float, number: int) -> list[Game]:
    """Five models against a baseline in both orders; the last wins `truth` of its games, the others a half."""
    found = []
    for model, wins in (("b", 0.5), ("c", 0.5), ("d", 0.5), ("e", truth)):
        own = chances(wins, number, 0.3)
        for place in (-1, 1):
            won = dice.random(number) < own
            found += [Game(f"q{q}", "J", "a", model, place, float(won[q]), 0.0) for q in range(number)]
    return found


def rating(truth: float, number: int) -> float | None:
    (group,) = map(shown, rate(games(truth, number), baseline="a"))
    (row,) = [each for each in group["models"] if each["model"] == "e"]
    return None if row["win_rate_ci"] is None else holds(row["win_rate_ci"], truth)


def rank(truth: float, number: int) -> float | None:
    """Of the last model, which is truly the best or the worst; equal models may have any rank of theirs."""
    (group,) = map(shown, rate(games(truth, number), baseline="a"))
    (row,) = [each for each in group["models"] if each["model"] == "e"]
    true = {0.05: 5, 0.95: 1}.get(truth, 3)
    return None if row["unbounded"] else float(row["rank"][0] <= true <= row["rank"][1])


MEASURES: list[tuple[str, Held, int]] = [
    ("share, one order", share(1, 1, 0.3), 1),
    ("share, both orders", share(1, 2, 0.5), 1),
    ("share, two turns, strongly alike", share(2, 1, 0.8), 1),
    ("share, three turns, both orders", share(3, 2, 0.3), 1),
    ("share, one to five turns", uneven, 1),
    ("score ratio", of_scores(False, True), 1),
    ("score ratio, mostly 1", of_scores(True, True), 1),
    ("mean grade", of_scores(False, False), 1),
    ("mean grade, mostly 1", of_scores(True, False), 1),
    ("win rate corrected by people", corrected, 1),
    ("kappa .64", kappa, 1),
    ("rating, as a win rate", rating, 4),
    ("rank", rank, 4),
]


def table(draws: int) -> Iterator[str]:
    for name, draw, slower in MEASURES:
        for number in QUESTIONS:
            cells = []
            for truth in SHARES:
                held = [draw(truth, number) for _ in range(draws // slower)]
                known = [each for each in held if each is not None]
                none = f" ({len(held) - len(known)} without)" if len(known) < len(held) else ""
                cells.append(f"{100 * np.mean(known):.1f}{none}" if known else "none")
            yield f"| {name} | {number} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    for line in table(parser.parse_args().draws):
        print(line, flush=True)
