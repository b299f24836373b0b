"""Reading judgments in every format: of `vtools judge`, FastChat and the Vicuna blog."""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vtools.process import Failure
from vtools.records import jsonl
from vtools.records.comparison import outcome
from vtools.records.jsonl import Record
from vtools.records.question import Question

FASTCHAT = {"model_1": "a", "model_2": "b", "tie": "tie"}
Pair = tuple[str, str, str]  # judge, a, b
Graded = tuple[str, str, str]  # judge, rubric, model


class Grade(NamedTuple):
    """The score of one turn of an answer, None if the judge's reply had none that could be read."""

    question: str
    category: str | None
    turn: int
    score: float | None
    unanswered: bool = False  # there was no answer to grade


@dataclass(slots=True)
class Unit:
    """The verdicts of one judge on the answers to one question (or one turn of it), in the orders shown."""

    question: str
    category: str | None
    verdicts: list[str | None] = field(default_factory=list)
    scores: list[tuple[float, float]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of a comparison that b wins by each verdict, ties as halves
    weights: list[int] = field(default_factory=list)  # how many games each verdict counts
    first_won: list[bool] = field(default_factory=list)  # whether the answer shown first won
    orders: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)  # `a`, `b`: whose answer is missing
    stopping: Record | None = None  # of a run that may stop early: its design, and the place in the random order
    repeated: int = 0  # further judgments in an order that there is one of already, which do not count

    @property
    def outcome(self) -> str | None:
        """`a`, `b` or `tie`; also a tie if the orders disagree; None if a verdict is missing."""
        return outcome(self.verdicts)

    @property
    def games(self) -> tuple[float, int]:
        """What b won of all games, and their number: one for each order, three where Arena-Hard's verdict is strong."""
        return sum(map(operator.mul, self.shares, self.weights)), sum(self.weights)

    @property
    def score(self) -> tuple[float, float] | None:
        """The mean scores of a and b, if every verdict came with scores."""
        if not self.scores or len(self.scores) < len(self.verdicts):
            return None
        a, b = zip(*self.scores, strict=True)
        return sum(a) / len(a), sum(b) / len(b)


@dataclass(slots=True)
class Judgments:
    """Those of pairs, by pair of models, then by question; and those of single answers, by model."""

    pairs: dict[Pair, dict[str, Unit]] = field(default_factory=dict)
    grades: dict[Graded, list[Grade]] = field(default_factory=dict)


def read(
    files: Iterable[str], questions: dict[str, Question], reparse: Callable[[Record], Record] | None = None
) -> Judgments:
    """All judgments; missing categories come from `questions`, and `reparse` reads their stored replies again.

    Raises Failure for a record that is no judgment.
    """
    judgments = Judgments()
    for file in files:
        for record in jsonl.records([file]):
            if reparse:
                try:
                    record = reparse(record)
                except Failure as failure:
                    raise Failure(f"{file}: {failure}") from None
            for judgment in read_judgment(record, file):
                question = judgment["id"]
                category = judgment.get("category")
                if not category and question in questions:
                    category = questions[question].category
                if judgment.get("mode") == "single":
                    graded = judgment["judge"], judgment["rubric"], judgment["model"]
                    grade = Grade(question, category, judgment["turn"], judgment["score"], "unanswered" in judgment)
                    judgments.grades.setdefault(graded, []).append(grade)
                    continue
                pair = judgment["judge"], judgment["a"], judgment["b"]
                key = f"{question}\0{judgment.get('turn', '')}"
                unit = Unit(question, category, stopping=judgment.get("stopping"))
                unit = judgments.pairs.setdefault(pair, {}).setdefault(key, unit)
                unit.unanswered |= set(judgment.get("unanswered", ()))
                if judgment["order"] in unit.orders:
                    unit.repeated += 1
                    continue
                unit.orders.add(judgment["order"])
                verdict = judgment["verdict"]
                unit.verdicts.append(verdict)
                unit.first_won.append(verdict == judgment["order"][0])
                expected = judgment.get("expectation")  # a's share, by the probabilities that the judge gave
                unit.shares.append({"a": 0.0, "b": 1.0}.get(verdict, 0.5) if expected is None else 1 - expected)
                unit.weights.append(judgment.get("games", 1))
                if judgment["scores"]:
                    unit.scores.append((float(judgment["scores"][0]), float(judgment["scores"][1])))
    return judgments


def read_judgment(record: Record, file: str) -> Iterator[Record]:
    """A judgment of `vtools judge`, one of FastChat's (of a pair: two of ours), or a Vicuna blog review."""
    if ("verdict" in record and "order" in record) or ("score" in record and "rubric" in record):
        yield record
    elif "judgment" in record and "score" in record:
        score, (judge, rubric) = record["score"], _judge_and_prompt(record)
        yield {
            "id": str(record["question_id"]), "mode": "single", "judge": judge, "rubric": rubric,
            "model": record["model"], "turn": record.get("turn", 1), "score": None if score < 0 else float(score),
        }  # fmt: skip
    elif "g1_winner" in record and "g2_winner" in record:
        shared = {
            "id": str(record["question_id"]), "turn": record.get("turn"), "scores": None,
            "a": record["model_1"], "b": record["model_2"],
            "judge": _judge_and_prompt(record)[0],
        }  # fmt: skip
        for winner, order in (("g1_winner", "ab"), ("g2_winner", "ba")):
            yield {**shared, "order": order, "verdict": FASTCHAT.get(record[winner])}
    elif "score" in record and "question_id" in record:
        # The models are named only in the file name; -1 means an unreadable reply.
        stem = "review" if file == "-" else Path(file).stem
        scores = [float(score) for score in record["score"]]
        scored = len(scores) == 2 and min(scores) >= 0
        # The reviewer's name ends with the prompt's: gpt-4-0328-generic, -coding and -math are one judge.
        judge = str(record.get("reviewer_id") or "unknown").removesuffix("-generic").removesuffix("-coding")
        yield {
            "id": str(record["question_id"]), "a": f"{stem}: Assistant 1", "b": f"{stem}: Assistant 2",
            "judge": judge.removesuffix("-math"), "order": "ab", "scores": scores if scored else None,
            "verdict": better(*scores) if scored else None,
        }  # fmt: skip
    else:
        raise Failure(f"{file}: not a judgment ({', '.join(list(record)[:6])}); vtools judge writes them")


def _judge_and_prompt(record: Record) -> tuple[str, str]:
    """FastChat's two names of a judge, of which older files have only the first."""
    judge: Any = record.get("judge")
    if isinstance(judge, list) and judge:
        return str(judge[0]), str(judge[-1])
    return str(judge), "unknown"


def better(a: float, b: float) -> str:
    """The verdict that follows from two scores."""
    return "tie" if a == b else "a" if a > b else "b"
