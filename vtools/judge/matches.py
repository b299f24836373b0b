"""Joining the answers of models into matches: two answers to the same question."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vtools.inference.journal import Task
from vtools.judge.answer_files import Answers, text, unanswered
from vtools.process import Failure, UsageFailure
from vtools.records.jsonl import Reject
from vtools.records.question import Question

SHOWN = 60  # characters of a question in a message
BEFORE = 20  # of these, what precedes a difference


@dataclass(frozen=True, slots=True)
class Match:
    """One question with the answers of two models, in one order: `ab` puts a's first.

    `unanswered` says for `a` and `b` why there is no answer: such a match cannot be judged.
    """

    question: Question
    a: str
    b: str
    a_turns: list[str]
    b_turns: list[str]
    order: str
    unanswered: dict[str, str] = field(default_factory=dict)

    def shown(self) -> tuple[list[str], list[str]]:
        """The answers as Assistant 1's and Assistant 2's."""
        return (self.a_turns, self.b_turns) if self.order == "ab" else (self.b_turns, self.a_turns)


def matches(
    every: Sequence[Answers], questions: dict[str, Question], baseline: str | None, orders: tuple[str, ...]
) -> Iterator[Task]:
    """A task with a Match for each pair of models, question and order, after the records that are no answers.

    `every` is in the order of the models' names, so that the same files in another order give the same. Raises Failure
    if the questions are missing or two models have none in common, UsageFailure if there is no such `baseline`.
    """
    if baseline is not None and baseline not in [answers.model for answers in every]:
        known = ", ".join(answers.model for answers in every)
        raise UsageFailure(f"--baseline {baseline}: none of the files has its answers; they are of {known}")
    for answers in every:
        yield from answers.rejects
    for a, b in itertools.combinations(every, 2):
        if baseline is None or baseline in (a.model, b.model):
            yield from _pair(a, b, questions, orders)


def _pair(a: Answers, b: Answers, questions: dict[str, Question], orders: tuple[str, ...]) -> Iterator[Task]:
    if a.tasks and b.tasks and not a.tasks.keys() & b.tasks.keys():
        raise Failure(f"nothing to judge: no question has an answer in both {_ids(a)} and {_ids(b)}")
    for identity in dict.fromkeys((*a.tasks, *b.tasks)):
        task = a.tasks.get(identity) or b.tasks[identity]
        question = _question(identity, a, b, questions)
        turns = a.turns(identity), b.turns(identity)
        missed = {side: why for side, given in zip("ab", turns, strict=True) if (why := unanswered(given))}
        if isinstance(question, Question) and not missed and not len(question.turns) == len(turns[0]) == len(turns[1]):
            counts = f"{len(question.turns)} turns, {len(turns[0])} and {len(turns[1])} answers"
            question = Reject("bad_schema", f"question {identity}: {counts}")
        if isinstance(question, Reject):
            yield Task(task.value, task.source, reject=question)
            continue
        for order in orders:
            yield Task(task.value, task.source, Match(question, a.model, b.model, *turns, order, missed))


def _question(identity: str, a: Answers, b: Answers, questions: dict[str, Question]) -> Question | Reject:
    """The question of two answers, on which all who carry it must agree. Raises Failure if nobody does."""
    given = [("--questions", questions[identity])] if identity in questions else []
    for answers in (a, b):
        task = answers.tasks.get(identity)
        if task and task.question.question:
            given.append((f"{answers.file}:{task.value.number}", task.question.question))
    if not given and not questions:
        raise Failure(f"{a.file}: the answers lack their questions; add --questions FILE")
    if not given:
        return Reject("bad_schema", f"the file of --questions has no question {identity}")
    place, question = given[0]
    for other, asked in given[1:]:
        if text(asked) != text(question):
            first, second = _beginnings(text(question), text(asked))
            return Reject("unmatched", f'question {identity} is "{first}" in {place} and "{second}" in {other}')
    return question


def _beginnings(first: str, second: str) -> tuple[str, str]:
    """Both texts, cut so that their difference shows."""
    same = next((n for n, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), 0)
    start = max(0, same - BEFORE) if same > SHOWN - BEFORE else 0
    cut = [f"{'…' if start else ''}{each[start : start + SHOWN]}" for each in (first, second)]
    return cut[0], cut[1]


def _ids(answers: Answers) -> str:
    return f"{answers.file} ({', '.join(list(answers.tasks)[:3])}{', …' if len(answers.tasks) > 3 else ''})"
