"""Joining the answers of models into matches: two answers to the same question."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vtools.inference.journal import Task
from vtools.judge.answer_files import Answers, Known, question_of, unanswered
from vtools.process import Failure, UsageFailure
from vtools.records.jsonl import Reject
from vtools.records.question import Question


@dataclass(frozen=True, slots=True)
class Match:
    """One question with the answers of two models, in one order, `ab` puts a's first, for one judge.

    `unanswered` says for `a` and `b` why there is no answer: such a match cannot be judged.
    """

    question: Question
    a: str
    b: str
    a_turns: list[str]
    b_turns: list[str]
    order: str
    unanswered: dict[str, str] = field(default_factory=dict)
    judge: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """Whose answers are judged."""
        return self.a, self.b

    def shown(self) -> tuple[list[str], list[str]]:
        """The answers as Assistant 1's and Assistant 2's."""
        return (self.a_turns, self.b_turns) if self.order == "ab" else (self.b_turns, self.a_turns)


def matches(
    every: Sequence[Answers], questions: Known, baseline: str | None, orders: tuple[str, ...]
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


def _pair(a: Answers, b: Answers, questions: Known, orders: tuple[str, ...]) -> Iterator[Task]:
    if a.tasks and b.tasks and not a.tasks.keys() & b.tasks.keys():
        raise Failure(f"nothing to judge: no question has an answer in both {_ids(a)} and {_ids(b)}")
    for identity in dict.fromkeys((*a.tasks, *b.tasks)):
        task = a.tasks.get(identity) or b.tasks[identity]
        question = question_of(identity, (a, b), questions)
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


def _ids(answers: Answers) -> str:
    return f"{answers.file} ({', '.join(list(answers.tasks)[:3])}{', …' if len(answers.tasks) > 3 else ''})"
