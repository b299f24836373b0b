"""Several judges together: whom more of them prefer on each question, and the means of all their grades."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from vtools.records.comparison import WON
from vtools.report import summary
from vtools.report.summary import Counted
from vtools.report.units import Grade, Graded, Pair, Rule, Unit, preferred


def tables(pairs: dict[Pair, dict[str, Unit]], rule: Rule) -> list[dict[str, Any]]:
    """A table for each pair of models that several judges have judged, all of them every question: none if one could
    stop early.
    """
    found = []
    for a, b in dict.fromkeys(pair[1:] for pair in pairs):
        judged = {judge: units for (judge, *models), units in pairs.items() if models == [a, b]}
        early = any(unit.stopping for units in judged.values() for unit in units.values())
        if len(judged) > 1 and not early:
            keys = dict.fromkeys(key for units in judged.values() for key in units)
            votes = [[units[key] for units in judged.values() if key in units] for key in keys]
            found.append(_summarise(list(judged), a, b, votes, rule))
    return found


def vote(units: Sequence[Unit], rule: Rule) -> Counted | None:
    """The answers to one question as several judges see them, whom each unit is of; None without any verdict.

    It goes to the answer that more judges prefer, else it is a tie. Scores are the means of the judges', if every judge
    with a verdict gave some.
    """
    units = [unit for unit in units if unit.read]
    winner = preferred([unit.outcome(rule) for unit in units])
    if winner is None:
        return None
    scores = [unit.score for unit in units]
    known = [score for score in scores if score]
    together = tuple(map(fmean, zip(*known, strict=True))) if len(known) == len(scores) else None
    return Counted(units[0].question, units[0].category, WON[winner], (together[0], together[1]) if together else None)


def _summarise(judges: list[str], a: str, b: str, every: list[list[Unit]], rule: Rule) -> dict[str, Any]:
    answered = [units for units in every if not any(unit.unanswered for unit in units)]
    rows = [row for units in answered if (row := vote(units, rule))]
    said = [[unit.outcome(rule) for unit in units if unit.read] for units in answered]
    several = [outcomes for outcomes in said if len(outcomes) > 1]
    partly = sum(0 < len(outcomes) < len(judges) for outcomes in said)
    return {
        "judges": judges,
        "a": a,
        "b": b,
        "rule": rule,
        "questions": len({units[0].question for units in every}),
        "judged": len(answered),
        "unparsed": len(answered) - len(rows),
        "by_several": len(several),
        "agreed": sum(len(set(outcomes)) == 1 for outcomes in several),
        **summary.counts(rows),
        **summary.certainty(rows),
        "other_rule": None,
        "bounds": summary.bounds(rows, len(every)),
        "stopping": None,
        "categories": summary.categories(rows),
        "warnings": [f"{partly} lack the verdict of a judge: the others decide"] if partly else [],
    }


def grades(given: dict[Graded, list[Grade]]) -> dict[Graded, list[Grade]]:
    """The grades of all judges who graded every model by a rubric, together, if there are several such judges.

    A judge who left out some models is not among them, for the means of strict and of mild judges do not compare.
    """
    together: dict[Graded, list[Grade]] = {}
    for rubric in dict.fromkeys(rubric for _, rubric, _ in given):
        models = _unique(model for _, name, model in given if name == rubric)
        judges = _unique(judge for judge, name, _ in given if name == rubric)
        whole = [judge for judge in judges if all((judge, rubric, model) in given for model in models)]
        for model in models if len(whole) > 1 else ():
            together[" + ".join(whole), rubric, model] = [
                grade for judge in whole for grade in given[judge, rubric, model]
            ]
    return together


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
