"""How far judges agree: with each other, and with people, beside how far people agree among themselves."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vtools.report.intervals import LEAST, estimate, student
from vtools.report.units import Judgments, Rule, Unit

OUTCOMES = ("a", "tie", "b")
VARIED = 8  # questions
Rated = tuple[str, str, str]  # question, the label by one, the label by the other


def kappa(rated: Sequence[Rated]) -> tuple[float | None, list[float] | None]:
    """Cohen's kappa of two raters, and its 95 % interval, clustered by question; None where all say the same.

    Its variance is the square of each question's influence, which for one label per question is that of Fleiss, Cohen
    and Everitt (Psychological Bulletin 72, 1969), up to n / (n - 1). No interval of fewer than 20 questions, or where
    one of them says something other than what is most common on fewer than 8: it would hold far less than 95 %.
    """
    number = len(rated)
    if not number:
        return None, None
    first, second = Counter(row[1] for row in rated), Counter(row[2] for row in rated)
    agreed = sum(x == y for _, x, y in rated) / number
    chance = sum(first[label] * second[label] for label in first) / number**2
    if chance >= 1:
        return None, None
    value = (agreed - chance) / (1 - chance)
    influence: dict[str, float] = {}
    for question, x, y in rated:
        own = (x == y) - agreed - (1 - value) * ((second[x] + first[y]) / number - 2 * chance)
        influence[question] = influence.get(question, 0.0) + own / (1 - chance) / number
    count = len(influence)
    common = (first + second).most_common(1)[0][0]
    varied = (len({question for question, *labels in rated if labels[side] != common}) for side in (0, 1))
    if count < LEAST or min(varied) < VARIED:
        return value, None
    variance = math.fsum(each * each for each in influence.values()) * count / (count - 1)
    # On Fisher's scale, where the interval stays within -1 and 1.
    half = student(count - 1) * math.sqrt(variance) / max(1 - value * value, 1e-9)
    middle = math.atanh(max(-0.999999, min(0.999999, value)))
    return value, [math.tanh(middle - half), math.tanh(middle + half)]


def alpha(ratings: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's alpha of labels by any number of raters, of whom some may have left out some; None where all say
    the same, or nothing is rated twice.

    Source: Krippendorff, Content Analysis (1980), for nominal data.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    weights: dict[tuple[str, str], float] = {}
    for labels in ratings:
        if len(labels) > 1:
            pairs = Counter(itertools.permutations(labels, 2))
            for pair, count in pairs.items():
                weights[pair] = weights.get(pair, 0.0) + count / (len(labels) - 1)
    totals: dict[str, float] = {}
    for (label, _), weight in weights.items():
        totals[label] = totals.get(label, 0.0) + weight
    number = sum(totals.values())
    expected = number * number - sum(total * total for total in totals.values())
    if not expected:
        return None
    apart = sum(weight for (x, y), weight in weights.items() if x != y)
    return 1 - (number - 1) * apart / expected


def compared(
    first: dict[str, Unit], second: dict[str, Unit], rule: Rule, turned: bool = False
) -> list[tuple[str, Unit, Unit, Rated]]:
    """The units that both have an outcome of; `turned` if the second has the models in the other order."""
    other = {"a": "b", "b": "a", "tie": "tie"}
    found = []
    for key, unit in first.items():
        twin = second.get(key)
        x, y = unit.outcome(rule), twin.outcome(rule) if twin else None
        if twin and x and y:
            found.append((key, unit, twin, (unit.question, x, other[y] if turned else y)))
    return found


def between(judgments: Judgments, rule: Rule) -> dict[str, Any] | None:
    """The agreement of several judges on the same answers: of each two of them, and of all; None of one judge."""
    judges = list(dict.fromkeys(judge for judge, _, _ in judgments.pairs))
    two = []
    for first, second in itertools.combinations(judges, 2):
        rated = []
        for (judge, a, b), units in judgments.pairs.items():
            if judge == first:
                rated += [each for *_, each in compared(units, judgments.pairs.get((second, a, b), {}), rule)]
        if rated:
            two.append({"judges": [first, second], **agreed(rated)})
    if not two:
        return None
    said: dict[tuple[str, ...], list[str]] = {}
    for (_, a, b), units in judgments.pairs.items():
        for key, unit in units.items():
            if outcome := unit.outcome(rule):
                said.setdefault((a, b, key), []).append(outcome)
    return {"two": two, "alpha": alpha(said.values()) if len(judges) > 2 else None, "judges": judges}


def agreed(rated: Sequence[Rated]) -> dict[str, Any]:
    """The share of the same outcomes with its interval, the same without ties, and kappa."""
    same = estimate((question, float(x == y), 1.0) for question, x, y in rated)
    decided = [(question, float(x == y), 1.0) for question, x, y in rated if "tie" not in (x, y)]
    without = estimate(decided)
    value, ends = kappa(rated)
    return {
        "n": len(rated),
        "agreement": same.mean if same else None,
        "agreement_ci": same.interval if same else None,
        "n_without_ties": len(decided),
        "without_ties": without.mean if without else None,
        "kappa": value,
        "kappa_ci": ends,
    }


def ceiling(units: Iterable[Unit]) -> dict[str, Any] | None:
    """How far people agree with each other: the share of pairs of votes on one unit that are the same.

    None where no unit has two votes.
    """
    rows = []
    for unit in units:
        votes = [vote.verdict for vote in unit.verdicts if vote.verdict]
        pairs = math.comb(len(votes), 2)
        if pairs:
            same = sum(math.comb(count, 2) for count in Counter(votes).values())
            rows.append((unit.question, same / pairs, 1.0))
    found = estimate(rows)
    labels = [[vote.verdict for vote in unit.verdicts if vote.verdict] for unit in units]
    return found and {"n": len(rows), "agreement": found.mean, "agreement_ci": found.interval, "alpha": alpha(labels)}
