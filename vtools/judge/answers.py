"""The answers of files one by one: each turn of each is a task of its own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtools.inference import journal
from vtools.inference.journal import Task
from vtools.process import Failure
from vtools.records.jsonl import Reject
from vtools.records.question import Answered, Question, read_answer, read_questions


@dataclass(frozen=True, slots=True)
class Single:
    """The answers of one model to a question; `turn`, counted from 0, is the one to grade."""

    question: Question
    model: str
    turns: list[str]
    turn: int


def singles(files: Iterable[str], questions_file: str | None) -> Iterator[Task]:
    """Tasks in the order of the files, each with a Single. Raises Failure if the questions are missing."""
    questions = read_questions(questions_file) if questions_file else {}
    for file in files:
        seen: set[str] = set()
        for task in journal.tasks([file], read_answer):
            if task.reject:
                yield task
                continue
            answered: Answered = task.question
            question = questions.get(answered.id) or answered.question
            if question is None and questions_file is None:
                raise Failure(f"{file}: the answers lack their questions; add --questions FILE")
            reject = None
            if answered.id in seen:
                reject = Reject("dup_id", f"a second answer to question {answered.id}")
            elif question is None:
                reject = Reject("bad_schema", f"{questions_file} has no question {answered.id}")
            elif len(question.turns) != len(answered.turns):
                counts = f"{len(question.turns)} turns and {len(answered.turns)} answers"
                reject = Reject("bad_schema", f"question {answered.id}: {counts}")
            seen.add(answered.id)
            if reject or question is None:
                yield Task(task.value, task.source, reject=reject)
                continue
            for turn in range(len(question.turns)):
                single = Single(question, answered.model or Path(file).stem, answered.turns, turn)
                yield Task(task.value, task.source, single)
