"""What may move a judge beside the answers: the place, the length, and whether an answer is of its own family."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from vtools.records.model_names import families
from vtools.report.intervals import estimate, mean_interval, sign_test
from vtools.report.units import Judgments, Rule, Unit


def position(units: Iterable[Unit]) -> dict[str, Any]:
    """What the order of the answers does to the verdicts of those judged in both.

    p is that of an exact test of whether the first answer wins both times as often as the second does; with several
    turns, a question counts once, for the place that wins more of its turns.
    """
    swapped = flipped = first = second = 0
    leads: dict[str, int] = {}
    for unit in units:
        if not (unit.ab and unit.ba and unit.read):
            continue
        swapped += 1
        if unit.flipped:
            shares = unit.by_order()
            one, other = shares["ab"] < 0.5 < shares["ba"], shares["ba"] < 0.5 < shares["ab"]
            flipped, first, second = flipped + 1, first + one, second + other
            leads[unit.question] = leads.get(unit.question, 0) + one - other
    return {
        "both_orders": swapped,
        "inconsistent": flipped / swapped if swapped else None,
        "first_won": first,
        "second_won": second,
        "position_p": sign_test(sum(lead > 0 for lead in leads.values()), sum(lead < 0 for lead in leads.values()))
        if swapped
        else None,
    }


def length(units: Iterable[Unit], rule: Rule) -> dict[str, Any] | None:
    """How often the longer answer wins, ties as halves, with its interval; None where lengths are not known.

    It is no adjusted rate: longer answers may be better, and a rate adjusted for length alone is further from people's
    verdicts than one that is not adjusted.
    """
    rows = []
    for unit in units:
        share = None if unit.unanswered else unit.share(rule)
        if share is not None and unit.lengths and unit.lengths[0] != unit.lengths[1]:
            rows.append((unit.question, share if unit.lengths[1] > unit.lengths[0] else 1 - share, 1.0))
    found = estimate(rows)
    return found and {"n": len(rows), "longer_wins": found.mean, "longer_wins_ci": found.interval}


def own_family(judgments: Judgments, votes: Judgments | None, rule: Rule) -> list[dict[str, Any]]:
    """For each judge, how much more its own family wins against others by its verdicts than by those of others.

    The others are people, where they voted, else the judges of other families; the difference is over the questions
    that both judged. None are listed without these, or where both models or neither are of the family.
    """
    found = []
    for (judge, a, b), units in judgments.pairs.items():
        own = families(judge)
        kin = {side for side, model in (("a", a), ("b", b)) if own & families(model)}
        if len(kin) != 1:
            continue
        (side,) = kin
        others = _shares(votes, a, b, rule) if votes else {}
        by = "people" if others else "judges of other families"
        if not others:
            fair = Judgments({pair: each for pair, each in judgments.pairs.items() if not families(pair[0]) & own})
            others = _shares(fair, a, b, rule)
        rows = []
        for key, unit in units.items():
            share = None if unit.unanswered else unit.share(rule)
            if share is not None and key in others:
                rows.append((unit.question, (share - fmean(others[key])) * (1 if side == "b" else -1), 1.0))
        if rows:
            found.append({
                "judge": judge, "model": b if side == "b" else a, "against": a if side == "b" else b,
                "family": sorted(own & families(b if side == "b" else a)), "by": by, "n": len(rows),
                "difference": fmean(each for _, each, _ in rows), "difference_ci": mean_interval(rows),
            })  # fmt: skip
    return found


def _shares(judgments: Judgments, a: str, b: str, rule: Rule) -> dict[str, list[float]]:
    """What b wins of each unit against a by all judges."""
    found: dict[str, list[float]] = {}
    for (_, first, second), units in judgments.pairs.items():
        if {first, second} == {a, b}:
            for key, unit in units.items():
                share = None if unit.unanswered else unit.share(rule)
                if share is not None:
                    found.setdefault(key, []).append(share if second == b else 1 - share)
    return found


def trained(units: Iterable[Unit], rule: Rule) -> dict[str, Any] | None:
    """The questions that are in the training data, as `vtools judge --training-data` found, and b's win rate without
    them; None if there are none.
    """
    known = [unit for unit in units if not unit.unanswered]
    questions = {unit.question for unit in known if unit.trained}
    if not questions:
        return None
    rows = [
        (unit.question, share, 1.0)
        for unit in known
        if unit.question not in questions and (share := unit.share(rule)) is not None
    ]
    rest = estimate(rows)
    return {
        "questions": len(questions),
        "win_rate_without": rest.mean if rest else None,
        "win_rate_without_ci": rest.interval if rest else None,
    }
