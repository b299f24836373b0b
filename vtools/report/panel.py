"""Several judges together: whom more of them prefer on each question, and the means of all their grades."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vtools.report import summary
from vtools.report.reading import Grade, Graded, Pair, Unit


@dataclass(slots=True)
class Votes:
    """What several judges say of the answers to one question (or one turn of it)."""

    units: list[Unit]

    @property
    def question(self) -> str:
        """Its id, as they are drawn by questions: the verdicts of several judges on one are not independent."""
        return self.units[0].question

    @property
    def category(self) -> str | None:
        """That of the question."""
        return self.units[0].category

    @property
    def outcomes(self) -> list[str]:
        """The outcome of each judge that has one."""
        return [unit.outcome for unit in self.units if unit.outcome]

    @property
    def outcome(self) -> str | None:
        """Whom more judges prefer than prefer the other, else a tie; None without any verdict."""
        outcomes = self.outcomes
        lead = outcomes.count("b") - outcomes.count("a")
        return ("b" if lead > 0 else "a" if lead < 0 else "tie") if outcomes else None

    @property
    def score(self) -> tuple[float, float] | None:
        """The means of the judges' scores, if every judge with a verdict gave some."""
        scores = [unit.score for unit in self.units if unit.outcome]
        known = [score for score in scores if score]
        if not known or len(known) < len(scores):
            return None
        a, b = zip(*known, strict=True)
        return sum(a) / len(a), sum(b) / len(b)


def tables(pairs: dict[Pair, dict[str, Unit]], seed: int) -> list[dict[str, Any]]:
    """A table for each pair of models that several judges have judged, all of them every question: none if one could
    stop early.
    """
    found = []
    for a, b in dict.fromkeys(pair[1:] for pair in pairs):
        judged = {judge: units for (judge, *models), units in pairs.items() if models == [a, b]}
        early = any(unit.stopping for units in judged.values() for unit in units.values())
        if len(judged) > 1 and not early:
            keys = dict.fromkeys(key for units in judged.values() for key in units)
            votes = [Votes([units[key] for units in judged.values() if key in units]) for key in keys]
            found.append(_summarise(list(judged), a, b, votes, seed))
    return found


def _summarise(judges: list[str], a: str, b: str, every: list[Votes], seed: int) -> dict[str, Any]:
    answered = [votes for votes in every if not any(unit.unanswered for unit in votes.units)]
    counted = [votes for votes in answered if votes.outcomes]
    several = [votes for votes in counted if len(votes.outcomes) > 1]
    partly = sum(len(votes.outcomes) < len(judges) for votes in counted)
    names = sorted({votes.category for votes in counted if votes.category})
    return {
        "judges": judges,
        "a": a,
        "b": b,
        "questions": len({votes.question for votes in every}),
        "judged": len(answered),
        "unparsed": len(answered) - len(counted),
        "by_several": len(several),
        "agreed": sum(len(set(votes.outcomes)) == 1 for votes in several),
        **summary.counts(counted),
        **summary.intervals(counted, seed),
        "stopping": None,
        "categories": {name: summary.counts([each for each in counted if each.category == name]) for name in names},
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
