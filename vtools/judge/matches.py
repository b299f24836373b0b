"""Joining two answer files into matches: two answers to the same question."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtools.inference import journal
from vtools.inference.journal import Task
from vtools.process import Failure
from vtools.records.jsonl import Reject
from vtools.records.question import Answered, Question, read_answer, read_questions


@dataclass(frozen=True, slots=True)
class Match:
    """One question with the answers of two models, in one order: `ab` puts a's first."""

    question: Question
    a: str
    b: str
    a_turns: list[str]
    b_turns: list[str]
    order: str

    def shown(self) -> tuple[list[str], list[str]]:
        """The answers as Assistant 1's and Assistant 2's."""
        return (self.a_turns, self.b_turns) if self.order == "ab" else (self.b_turns, self.a_turns)


def matches(a_file: str, b_file: str, questions_file: str | None, orders: tuple[str, ...]) -> Iterator[Task]:
    """Tasks in the order of a's answers, each with a Match; an answer without a partner becomes a reject.

    b's answers and the questions are held in memory; a's are streamed. Raises Failure if the questions are missing.
    """
    questions = read_questions(questions_file) if questions_file else {}
    others: dict[str, Task] = {}
    for task in journal.tasks([b_file], read_answer):
        if task.reject:
            yield _left_out(task, task.reject)
        elif task.question.id in others:
            yield _left_out(task, _twice(task.question))
        else:
            others[task.question.id] = task
    seen: set[str] = set()
    for task in journal.tasks([a_file], read_answer):
        first: Answered = task.question
        if task.reject:
            yield _left_out(task, task.reject)
        elif first.id in seen:
            yield _left_out(task, _twice(first))
        elif first.id not in others:
            yield _left_out(task, Reject("unmatched", f"question {first.id} has no answer in {b_file}"))
        else:
            seen.add(first.id)
            second: Answered = others.pop(first.id).question
            question = questions.get(first.id) or first.question or second.question
            if question is None and questions_file is None:
                raise Failure(f"{a_file}: the answers lack their questions; add --questions FILE")
            if question is None:
                yield _left_out(task, Reject("bad_schema", f"{questions_file} has no question {first.id}"))
            elif not len(question.turns) == len(first.turns) == len(second.turns):
                counts = f"{len(question.turns)} turns, {len(first.turns)} and {len(second.turns)} answers"
                yield _left_out(task, Reject("bad_schema", f"question {first.id}: {counts}"))
            else:
                names = first.model or Path(a_file).stem, second.model or Path(b_file).stem
                for order in orders:
                    yield Task(task.value, task.source, Match(question, *names, first.turns, second.turns, order))
    for task in others.values():
        yield _left_out(task, Reject("unmatched", f"question {task.question.id} has no answer in {a_file}"))


def _twice(answered: Answered) -> Reject:
    return Reject("dup_id", f"a second answer to question {answered.id}")


def _left_out(task: Task, reject: Reject) -> Task:
    return Task(task.value, task.source, reject=reject)
