"""Reading judgments, in whatever formats, into the units that are measured."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtools.process import Failure, UsageFailure
from vtools.records import jsonl
from vtools.records.jsonl import Record, Reject
from vtools.records.question import Answered, Question, read_answer
from vtools.report import formats
from vtools.report.units import Judgment, Judgments, Pair, Unit
from vtools.report.values import Wrong

NAMED = re.compile(r"review_([^_]+)_([^_]+)")  # how the Vicuna blog names its files
NO_KEYS = {"alpacaeval", "blog", "fastchat"}  # of which a whole row that comes twice is one judgment


@dataclass(slots=True)
class Known:
    """What is known beside the judgments: questions by id; answers by model and question, and whose they are by id."""

    questions: dict[str, Question] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answered] = field(default_factory=dict)  # by model and question
    models: dict[str, str] = field(default_factory=dict)  # by the id of an answer, whose it is
    files: dict[str, str] = field(default_factory=dict)  # by model, of its answers


def read(
    files: Iterable[str],
    known: Known | None = None,
    reparse: Callable[[Record], Record] | None = None,
    form: str | None = None,
    otherwise: str | None = None,
) -> Judgments:
    """All judgments; `reparse` reads their stored replies again, and `form` names the format of all of them,
    `otherwise` of those that do not show it.

    Categories, questions, answers and their lengths that a judgment lacks come from `known`. Raises Failure for a
    record that is no judgment, with its file and line.
    """
    collector = Collector(known or Known())
    whole: set[bytes] = set()
    for file in files:
        reviews: list[Judgment] = []
        for place, record, raw in _records(file):
            try:
                record = reparse(record) if reparse else record
                name = form or formats.recognise(record, otherwise)
                if name in NO_KEYS:
                    if raw in whole:
                        collector.found.copies += 1
                        continue
                    whole.add(raw)
                for each in formats.FORMATS[name](record, file):
                    if not isinstance(each, Judgment):
                        collector.add_other(each)
                    elif name == "blog":
                        reviews.append(each)
                    else:
                        collector.add(each)
            except (Wrong, Failure) as error:
                raise Failure(f"{place}: {error}") from None
        for review in _named(reviews, file, collector):
            collector.add(review)
    return collector.found


def read_answers(files: Sequence[str]) -> Known:
    """The answers of models, of `vtools chat`, FastChat or the Vicuna blog. Raises Failure.

    A file is given as FILE or, if the judge was told another name of its model, as NAME=FILE.
    """
    known = Known()
    for given in files:
        name, equals, file = given.partition("=")
        if not equals or os.path.exists(given):
            name, file = "", given
        for place, record, _ in _records(file):
            try:
                answer = read_answer(record)
            except Reject as reject:
                raise Failure(f"{place}: {reject.detail or reject.reason}") from None
            model = name or answer.model or Path(file).stem
            if (model, answer.id) in known.answers:
                raise Failure(
                    f"{place}: a second answer of {model} to question {answer.id}; --answers NAME=FILE names models"
                )
            known.files.setdefault(model, file)
            known.answers[model, answer.id] = answer
            if isinstance(identity := record.get("answer_id"), str):
                known.models[identity] = model
    return known


def check_answers(known: Known, judgments: Judgments) -> None:
    """Raises UsageFailure for answers of a model that nobody judged."""
    pairs = (model for pair in judgments.pairs for model in pair[1:])
    judged = list(dict.fromkeys([*pairs, *(model for _, _, model in judgments.grades), *judgments.checks]))
    for model, file in known.files.items():
        if judged and model not in judged:
            said = f"--answers {file}: nobody judged answers of {model}, but of {', '.join(judged)}"
            raise UsageFailure(f"{said}; say whose they are, as in --answers {judged[0]}={file}")


def _records(file: str) -> Iterator[tuple[str, Record, bytes]]:
    """The records of a file with their places. Raises Failure."""
    for value in jsonl.values([file]):
        record = jsonl.parse(value)[0]
        if isinstance(record, Reject):
            raise Failure(f"{value.place}: {record.detail or record.reason}")
        yield value.place, record, value.raw.strip()


@dataclass(slots=True)
class Collector:
    """Judgments as they are collected into units."""

    known: Known
    found: Judgments = field(default_factory=Judgments)
    files: dict[str, str] = field(default_factory=dict)  # of reviews: by the bare name, the path
    _models: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)  # which of two is a, for all judges
    _keys: set[tuple[Pair, str]] = field(default_factory=set)

    def add(self, judgment: Judgment) -> None:
        """Add a judgment of a pair to its unit; one of the reversed pair is turned around."""
        found, models = self.found, (judgment.a, judgment.b)
        if self._models.setdefault((min(models), max(models)), models) != models:
            judgment = judgment.reversed()
        pair = judgment.judge, judgment.a, judgment.b
        units = found.pairs.setdefault(pair, {})
        unit = units.setdefault(
            f"{judgment.id}\0{'' if judgment.turn is None else judgment.turn}",
            Unit(judgment.id, judgment.category, judgment.turn, stopping=judgment.stopping),
        )
        self._complete(unit, judgment)
        unit.unanswered |= judgment.unanswered
        if judgment.key is not None:
            if (pair, judgment.key) in self._keys:
                unit.repeated += 1
                return
            self._keys.add((pair, judgment.key))
        said = judgment.said
        {"ab": unit.ab, "ba": unit.ba, "": unit.unordered}[judgment.order].append(said)
        found.prompts.setdefault(pair, Counter())[judgment.prompt or ""] += judgment.prompt is not None
        found.reported.setdefault(pair, Counter())[judgment.reported or ""] += judgment.reported is not None
        if said.verdict and said.scores and formats.better(*said.scores) != said.verdict:
            found.contradicted[pair] = found.contradicted.get(pair, 0) + 1

    def add_other(self, read: formats.Graded1 | formats.Checked) -> None:
        """Add the grade of one answer, or a program's check of it."""
        if len(read) == 3:
            model, question, passed = read
            self.found.checks.setdefault(model, defaultdict(list))[question].append(passed)
            return
        graded, grade = read
        if not grade.category and grade.question in self.known.questions:
            grade = grade._replace(category=self.known.questions[grade.question].category)
        self.found.grades.setdefault(graded, []).append(grade)

    def _complete(self, unit: Unit, judgment: Judgment) -> None:
        """Fill in what the unit lacks, from the judgment or from what is known beside it."""
        question = self.known.questions.get(unit.question)
        unit.category = unit.category or judgment.category or (question.category if question else None)
        unit.trained |= judgment.trained
        unit.asked = unit.asked or judgment.asked or (tuple(question.turns) if question else ())
        unit.answers, unit.lengths = unit.answers or judgment.answers, unit.lengths or judgment.lengths
        if unit.answers is None:
            both = [self.known.answers.get((model, unit.question)) for model in (judgment.a, judgment.b)]
            if both[0] and both[1]:
                unit.answers = tuple(both[0].turns), tuple(both[1].turns)
                unit.asked = unit.asked or (tuple(both[0].question.turns) if both[0].question else ())
        if unit.lengths is None and unit.answers is not None:
            unit.lengths = float(sum(map(len, unit.answers[0]))), float(sum(map(len, unit.answers[1])))


def _named(reviews: Sequence[Judgment], file: str, collector: Collector) -> Iterator[Judgment]:
    """The reviews of one file of the Vicuna blog with the names of their models.

    By the ids of the answers if `known` has these, or if all answers have the same, which is then a name; else by the
    file's name. Another file of the same name is another pair.
    """
    stem = "review" if file == "-" else Path(file).stem
    other = collector.files.setdefault(stem, file) != file if reviews else False
    match = NAMED.fullmatch(stem)
    by_file = match.groups() if match and match[1] != match[2] else (f"{stem}: Assistant 1", f"{stem}: Assistant 2")
    constant = len(reviews) > 1 and len({review.a for review in reviews}) == len({review.b for review in reviews}) == 1
    for review in reviews:
        a, b = (collector.known.models.get(identity) for identity in (review.a, review.b))
        if a is None or b is None:
            a, b = (review.a, review.b) if constant and review.a and review.b and review.a != review.b else by_file
        if other:
            a, b = f"{a} ({file})", f"{b} ({file})"
        yield review._replace(a=a, b=b)
