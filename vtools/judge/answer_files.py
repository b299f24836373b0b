"""The answers of models, a file each: whose they are, which are none, and what looks wrong with them."""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtools.inference import journal
from vtools.inference.journal import Task
from vtools.process import Failure, UsageFailure
from vtools.records.jsonl import Record, Reject
from vtools.records.question import CONVERSATIONS, Answered, Question, read_answer, read_questions

# Fields that a record of a question lacks, as far as it is no conversation.
OF_ANSWERS = {"model", "model_id", "answer_id", "choices", "question", "completion", "output", *CONVERSATIONS}
OF_QUESTIONS = {"category", "reference", "checklist"}
ERROR = re.compile(r"\$[A-Z_ ]*ERROR[A-Z_ ]*\$")  # what evaluation programs store in place of an answer
SHOWN = 60  # characters of a question in a message
BEFORE = 20  # of these, what precedes a difference
ALIKE = 200  # characters: answers that begin with the same ones are alike
TO_THE_JUDGE = re.compile(
    r"\b(?:as|dear|note to|hello|attention|instructions? (?:to|for)|you are) (?:the |an? |my )?(?:\w+ )?"
    r"(?:judge|grader|evaluator)\b|\b(?:rating|score|grade|verdict|winner)\W{0,4}\[\[[^\[\]\n]{1,4}\]\]|\[\[[ABC]\]\]|"
    r"\b(?:ignore|disregard|forget) (?:\w+ ){0,3}(?:previous|above|prior|earlier|other) (?:instructions?|answers?)|"
    r"\b(?:give|award|assign) (?:me|this (?:answer|response)|(?:the )?assistant [12ab])\b.{0,30}\b"
    r"(?:score|grade|rating)\b|"
    r"\bassistant [12ab] (?:is|was) (?:the )?(?:better|best|winner)\b",
    re.IGNORECASE,
)

Known = dict[str, Question]  # by id


@dataclass(slots=True)
class Answers:
    """The answers of one model, by the ids of their questions; `rejects` are the records that are none."""

    file: str
    model: str
    tasks: dict[str, Task] = field(default_factory=dict)
    rejects: list[Task] = field(default_factory=list)
    names: tuple[str, ...] = ()  # all that its model goes by: given, and in the records

    def turns(self, identity: str) -> list[str]:
        """The answers to a question; none if there is no such record."""
        task = self.tasks.get(identity)
        return task.question.turns if task else []


def read(files: Sequence[str], names: Sequence[str] | None, questions: str | None) -> tuple[list[Answers], Known]:
    """The answers of each file, in the order of their models' names, and the questions of the file with these.

    Raises Failure for a file of questions, one with an id or a model too much, and UsageFailure for two files with one
    name, as no judgment could say which of them won.
    """
    if names and len(names) != len(files):
        raise UsageFailure(
            f"--name is given {len(names)} times for {len(files)} files: give it once per file, in order"
        )
    if files.count("-") > 1:
        raise UsageFailure("- is stdin, which has one file of answers")
    known = read_questions(questions) if questions else {}
    every = [_read(file, name) for file, name in zip(files, names or [""] * len(files), strict=True)]
    texts = {identity: text(question) for identity, question in known.items()}
    for answers in every:
        for identity, task in answers.tasks.items():
            if task.question.question:
                texts.setdefault(identity, text(task.question.question))
    for answers in every:
        same = questions and os.path.exists(answers.file) and os.path.samefile(answers.file, questions)
        if same or _are_questions(answers, texts):
            raise Failure(
                f"{answers.file}: has questions and no answers; give it with --questions, or have them answered by "
                "vtools chat (if these are answers, add a field model)"
            )
        if not answers.tasks and not answers.rejects:
            raise Failure(f"{answers.file}: nothing to judge: the file is empty")
    every.sort(key=lambda answers: answers.model)
    for first, second in itertools.pairwise(every):
        if first.model == second.model:
            raise UsageFailure(
                f"{first.file} and {second.file} both have answers of {first.model}; name them in the order of the "
                f"files, as in --name {first.model}-1 --name {first.model}-2"
            )
    return every, known


def _read(file: str, name: str) -> Answers:
    answers, models = Answers(file, name), dict[str, int]()
    for task in journal.tasks([file], read_answer):
        if task.reject:
            answers.rejects.append(task)
            continue
        answered: Answered = task.question
        if answered.id in answers.tasks:
            before = answers.tasks[answered.id].value.number
            raise Failure(
                f"{file}:{task.value.number}: question {answered.id} is answered in line {before} already; "
                "keep one of them"
            )
        answers.tasks[answered.id] = task
        if answered.model:
            models.setdefault(answered.model, task.value.number)
    if len(models) > 1 and not name:
        first, second = list(models.items())[:2]
        raise Failure(
            f"{file}: answers of two models, {first[0]} (line {first[1]}) and {second[0]} (line {second[1]}): give "
            "each a file of its own, or say with --name whose they are"
        )
    answers.model = name or next(iter(models), "") or ("stdin" if file == "-" else Path(file).stem)
    answers.names = (answers.model, *models)
    return answers


def _are_questions(answers: Answers, texts: dict[str, str]) -> bool:
    """Whether a file has questions where its answers should be: by its fields, or by what its texts are."""
    records: list[Record] = [task.source for task in (*answers.tasks.values(), *answers.rejects) if task.source]
    if not records or any(record.keys() & OF_ANSWERS for record in records):
        return False
    if any(record.keys() & OF_QUESTIONS for record in records) or not answers.tasks:
        return True
    same = sum(texts.get(identity) == plain("\n".join(answers.turns(identity))) for identity in answers.tasks)
    return same * 2 > len(answers.tasks)


def unanswered(turns: list[str]) -> str | None:
    """Why these are no answers to a question: `missing`, `empty` or `error`; None if they are."""
    if not turns:
        return "missing"
    if not all(turn.strip() for turn in turns):
        return "empty"
    return "error" if any(ERROR.fullmatch(turn.strip()) for turn in turns) else None


def question_of(identity: str, every: Sequence[Answers], questions: Known) -> Question | Reject:
    """The question of some models' answers, on which all who carry it must agree. Raises Failure if nobody does."""
    given = [("--questions", questions[identity])] if identity in questions else []
    for answers in every:
        task = answers.tasks.get(identity)
        if task and task.question.question:
            given.append((f"{answers.file}:{task.value.number}", task.question.question))
    if not given and not questions:
        raise Failure(f"{every[0].file}: the answers lack their questions; add --questions FILE")
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


def text(question: Question) -> str:
    """All that a question says, in a form in which equal questions are equal."""
    return plain("\n".join([*(message["content"] for message in question.context), *question.turns]))


def plain(words: str) -> str:
    """A text in Unicode's composed form (NFC), with single blanks."""
    return " ".join(unicodedata.normalize("NFC", words).split())


def warnings(every: Iterable[Answers]) -> list[str]:
    """What makes answers suspicious: that most of a model are the same text, or that some speak to the judge."""
    found = []
    for answers in every:
        given = {identity: "\n".join(answers.turns(identity)) for identity in answers.tasks}
        given = {identity: words for identity, words in given.items() if words.strip()}
        begun = Counter(plain(words)[:ALIKE] for words in given.values())
        most = max(begun.values(), default=0)
        if most > 2 and most * 2 > len(given):
            found.append(f"{most} of the {len(given)} answers of {answers.model} are alike, whatever was asked")
        speaking = [identity for identity, words in given.items() if _speaks_to_the_judge(answers, identity, words)]
        if speaking:
            hit = TO_THE_JUDGE.search(given[speaking[0]])
            said = f' (question {speaking[0]}: "{plain(hit[0])}")' if hit else ""
            found.append(f"{len(speaking)} of the {len(given)} answers of {answers.model} speak to the judge{said}")
    return found


def _speaks_to_the_judge(answers: Answers, identity: str, words: str) -> bool:
    question = answers.tasks[identity].question.question
    return bool(TO_THE_JUDGE.search(words)) and not (question and TO_THE_JUDGE.search(text(question)))
