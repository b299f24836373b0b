"""The questions of the page, as the JSON that its script reads: what was asked, answered and said of it."""

from collections.abc import Iterable
from typing import Any

from vtools.process import shown
from vtools.records.question import Question
from vtools.report.comparisons import Comparison, joined, question_of
from vtools.report.reading import Known
from vtools.report.units import Judgments, Rule, Verdict


class _Numbers(dict[str, int]):
    """Names by the number under which each is used, so that no name is repeated."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]

    def listed(self) -> list[str]:
        return [visible(name) for name in self]


def visible(text: str) -> str:
    """A text as it may be shown: what turns the direction of writing, or is no character, is written out."""
    return shown(text.replace("\r\n", "\n"))


def build(judgments: Judgments, known: Known, rule: Rule) -> dict[str, Any]:
    """Everything below the charts: `questions` with the answers of each model, and `items`, one per row of the list."""
    models, judges = _Numbers(), _Numbers()
    questions: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []

    def entry_of(
        identity: str, category: str | None, question: Question | None, asked: Iterable[str] = ()
    ) -> dict[str, Any]:
        """The entry of a question, made when it is first needed."""
        if identity not in questions:
            entry = {"number": len(questions), "id": visible(identity), "category": visible(category or "")}
            entry["context"] = [_message(each) for each in question.context] if question else []
            entry["turns"] = [visible(turn) for turn in asked or (question.turns if question else ())]
            entry["reference"] = [visible(turn) for turn in (question.reference or ())] if question else []
            entry["answers"] = {}
            questions[identity] = entry
        return questions[identity]

    for comparison in joined(judgments.pairs, rule):
        question = question_of(known, comparison.question, comparison.a, comparison.b)
        entry = entry_of(comparison.question, comparison.category, question, comparison.asked(known))
        a, b = models[comparison.a], models[comparison.b]
        for number, turns in zip((a, b), comparison.answers(known), strict=True):
            if turns and str(number) not in entry["answers"]:
                entry["answers"][str(number)] = [visible(turn) for turn in turns]
        items.append({"q": entry["number"], "t": comparison.turn, "a": a, "b": b, **_said(comparison, judges)})
    for (judge, _, model), grades in judgments.grades.items():
        for grade in grades:
            entry = entry_of(grade.question, grade.category, question_of(known, grade.question, model))
            number, answer = models[model], known.answers.get((model, grade.question))
            if answer:
                entry["answers"].setdefault(str(number), [visible(turn) for turn in answer.turns])
            said = [[judges[judge], "", None, None if grade.score is None else [grade.score], visible(grade.words)]]
            items.append({"q": entry["number"], "t": grade.turn, "a": number, "b": None, "won": None, "said": said})
    for entry in questions.values():
        del entry["number"]
    return {"models": models.listed(), "judges": judges.listed(), "questions": list(questions.values()), "items": items}


def _message(message: dict[str, Any]) -> list[str]:
    return [visible(message["role"]), visible(message["content"])]


def _said(comparison: Comparison, judges: _Numbers) -> dict[str, Any]:
    """Who wins, what disagrees, and each verdict with its judge, order, scores and words."""
    said = [
        _verdict(judges[judge], order, verdict)
        for judge, unit in comparison.judged.items()
        for order, verdicts in unit.orders()
        for verdict in verdicts
    ]
    missing = sorted({side for unit in comparison.judged.values() for side in unit.unanswered})
    found: dict[str, Any] = {"won": comparison.outcome, "said": said}
    found |= {"orders": True} if comparison.orders_disagree else {}
    found |= {"judges": True} if comparison.judges_disagree else {}
    return found | ({"missing": missing} if missing else {})


def _verdict(judge: int, order: str, said: Verdict) -> list[Any]:
    row = [judge, order, said.verdict, said.scores and list(said.scores), visible(said.words)]
    return [*row, visible(said.voter)] if said.voter else row
