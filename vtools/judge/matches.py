"""Two answer files to matches: the answers to the same question, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtools.inference.journal import Task
from vtools.process import Failure
from vtools.records import jsonl, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.question import Answered, Question, read_answer, read_question


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


@dataclass(slots=True)
class _Entry:
    value: streams.Value
    record: Record | None
    answered: Answered | None
    reject: Reject | None

    def task(self, reject: Reject | None = None) -> Task:
        return Task(self.value, self.record, reject=reject or self.reject)


def matches(a_file: str, b_file: str, questions_file: str | None, orders: tuple[str, ...]) -> Iterator[Task]:
    """Tasks in the order of a's answers, whose question is a Match; what has no partner is a reject.

    b's answers and the questions are held in memory; a's are streamed. Raises Failure without the questions' text.
    """
    questions = _questions(questions_file) if questions_file else {}
    others: dict[str, _Entry] = {}
    for entry in _entries(b_file):
        if entry.answered is None:
            yield entry.task()
        elif entry.answered.id in others:
            yield entry.task(_twice(entry.answered))
        else:
            others[entry.answered.id] = entry
    seen: set[str] = set()
    for entry in _entries(a_file):
        first = entry.answered
        if first is None:
            yield entry.task()
        elif first.id in seen:
            yield entry.task(_twice(first))
        elif first.id not in others:
            yield entry.task(Reject("unmatched", f"question {first.id} has no answer in {b_file}"))
        else:
            seen.add(first.id)
            second = others.pop(first.id).answered
            assert second is not None
            question = questions.get(first.id) or first.question or second.question
            if question is None and questions_file is None:
                raise Failure(f"{a_file}: the answers lack their questions; --questions FILE gives them")
            if question is None:
                yield entry.task(Reject("bad_schema", f"{questions_file} has no question {first.id}"))
            elif not len(question.turns) == len(first.turns) == len(second.turns):
                counts = f"{len(question.turns)} turns, {len(first.turns)} and {len(second.turns)} answers"
                yield entry.task(Reject("bad_schema", f"question {first.id}: {counts}"))
            else:
                names = first.model or Path(a_file).stem, second.model or Path(b_file).stem
                for order in orders:
                    match = Match(question, *names, first.turns, second.turns, order)
                    yield Task(entry.value, entry.record, match)
    for entry in others.values():
        assert entry.answered is not None
        yield entry.task(Reject("unmatched", f"question {entry.answered.id} has no answer in {a_file}"))


def _twice(answered: Answered) -> Reject:
    return Reject("dup_id", f"a second answer to question {answered.id}")


def _entries(file: str) -> Iterator[_Entry]:
    for value in streams.values(file):
        record = jsonl.parse(value)[0]
        if isinstance(record, Reject):
            yield _Entry(value, None, None, record)
            continue
        try:
            yield _Entry(value, record, read_answer(record), None)
        except Reject as reject:
            yield _Entry(value, record, None, reject)


def _questions(file: str) -> dict[str, Question]:
    try:
        return {question.id: question for question in map(read_question, jsonl.records([file]))}
    except Reject as reject:
        raise Failure(f"{file}: {reject.detail}") from None
