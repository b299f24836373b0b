"""The answers of models one by one: each turn of each is a task of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vtools.inference.journal import Task
from vtools.judge.answer_files import Answers, text, unanswered
from vtools.process import Failure
from vtools.records.jsonl import Reject
from vtools.records.question import Question


@dataclass(frozen=True, slots=True)
class Single:
    """The answers of one model to a question; `turn`, counted from 0, is the one to grade.

    `unanswered` says why there is no answer.
    """

    question: Question
    model: str
    turns: list[str]
    turn: int
    unanswered: str | None = None


def singles(every: Sequence[Answers], questions: dict[str, Question]) -> Iterator[Task]:
    """Tasks in the order of the models' names, each with a Single. Raises Failure if the questions are missing."""
    for answers in every:
        yield from answers.rejects
        for identity, task in answers.tasks.items():
            question, turns = questions.get(identity) or task.question.question, task.question.turns
            if question is None and not questions:
                raise Failure(f"{answers.file}: the answers lack their questions; add --questions FILE")
            why, reject = unanswered(turns), None
            if question is None:
                reject = Reject("bad_schema", f"the file of --questions has no question {identity}")
            elif task.question.question and text(task.question.question) != text(question):
                reject = Reject("unmatched", f"question {identity} is another one in the file of --questions")
            elif not why and len(question.turns) != len(turns):
                counts = f"{len(question.turns)} turns and {len(turns)} answers"
                reject = Reject("bad_schema", f"question {identity}: {counts}")
            if reject or question is None:
                yield Task(task.value, task.source, reject=reject)
                continue
            for turn in range(len(question.turns)):
                missing = why and unanswered(turns[turn : turn + 1])
                yield Task(task.value, task.source, Single(question, answers.model, turns, turn, missing))
