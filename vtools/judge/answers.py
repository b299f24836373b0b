"""The answers of models one by one: each turn of each is a task of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vtools.inference.journal import Task
from vtools.judge.answer_files import Answers, Known, question_of, unanswered
from vtools.records.jsonl import Reject
from vtools.records.question import Question


@dataclass(frozen=True, slots=True)
class Single:
    """The answers of one model to a question; `turn`, counted from 0, is the one that a judge is to grade.

    `unanswered` says why there is no answer.
    """

    question: Question
    model: str
    turns: list[str]
    turn: int
    unanswered: str | None = None
    judge: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """Whose answer is judged."""
        return (self.model,)


def singles(every: Sequence[Answers], questions: Known) -> Iterator[Task]:
    """Tasks in the order of the models' names, each with a Single. Raises Failure if the questions are missing."""
    for answers in every:
        yield from answers.rejects
        for identity, task in answers.tasks.items():
            question, turns = question_of(identity, (answers,), questions), task.question.turns
            why = unanswered(turns)
            if isinstance(question, Question) and not why and len(question.turns) != len(turns):
                counts = f"{len(question.turns)} turns and {len(turns)} answers"
                question = Reject("bad_schema", f"question {identity}: {counts}")
            if isinstance(question, Reject):
                yield Task(task.value, task.source, reject=question)
                continue
            for turn in range(len(question.turns)):
                missing = why and unanswered(turns[turn : turn + 1])
                yield Task(task.value, task.source, Single(question, answers.model, turns, turn, missing))
