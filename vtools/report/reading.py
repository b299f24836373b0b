"""Reading judgments in every format: of `vtools judge`, FastChat and the Vicuna blog."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vtools.process import Failure
from vtools.records import jsonl
from vtools.records.jsonl import Record
from vtools.records.question import Question

FASTCHAT = {"model_1": "a", "model_2": "b", "tie": "tie"}
Pair = tuple[str, str, str]  # judge, a, b


@dataclass(slots=True)
class Unit:
    """The verdicts of one judge on the answers to one question (or one turn of it), in the orders shown."""

    question: str
    category: str | None
    verdicts: list[str | None] = field(default_factory=list)
    scores: list[tuple[float, float]] = field(default_factory=list)
    first_won: list[bool] = field(default_factory=list)  # whether the answer shown first won

    @property
    def outcome(self) -> str | None:
        """`a`, `b` or `tie`; also a tie if the orders disagree; None if a verdict is missing."""
        if None in self.verdicts:
            return None
        agreed = set(self.verdicts)
        return "tie" if len(agreed) > 1 or agreed == {"both_bad"} else self.verdicts[0]

    @property
    def score(self) -> tuple[float, float] | None:
        """The mean scores of a and b, if every verdict came with scores."""
        if not self.scores or len(self.scores) < len(self.verdicts):
            return None
        a, b = zip(*self.scores, strict=True)
        return sum(a) / len(a), sum(b) / len(b)


def read(files: Iterable[str], questions: dict[str, Question]) -> dict[Pair, dict[str, Unit]]:
    """Judgments by pair of models, then by question; missing categories come from `questions`.

    Raises Failure for a record that is no judgment.
    """
    pairs: dict[Pair, dict[str, Unit]] = {}
    for file in files:
        for record in jsonl.records([file]):
            for judgment in read_judgment(record, file):
                pair = judgment["judge"], judgment["a"], judgment["b"]
                question = judgment["id"]
                category = judgment.get("category")
                if not category and question in questions:
                    category = questions[question].category
                key = f"{question}\0{judgment.get('turn', '')}"
                unit = pairs.setdefault(pair, {}).setdefault(key, Unit(question, category))
                verdict = judgment["verdict"]
                unit.verdicts.append(verdict)
                unit.first_won.append(verdict == judgment["order"][0])
                if judgment["scores"]:
                    unit.scores.append((float(judgment["scores"][0]), float(judgment["scores"][1])))
    return pairs


def read_judgment(record: Record, file: str) -> Iterator[Record]:
    """A judgment of `vtools judge`, a pair judgment of FastChat's (two of ours), or a Vicuna blog review."""
    if "verdict" in record and "order" in record:
        yield record
    elif "g1_winner" in record and "g2_winner" in record:
        judge = record.get("judge")
        shared = {
            "id": str(record["question_id"]), "turn": record.get("turn"), "scores": None,
            "a": record["model_1"], "b": record["model_2"],
            "judge": str(judge[0] if isinstance(judge, list) and judge else judge),
        }  # fmt: skip
        for winner, order in (("g1_winner", "ab"), ("g2_winner", "ba")):
            yield {**shared, "order": order, "verdict": FASTCHAT.get(record[winner])}
    elif "score" in record and "question_id" in record:
        # The models are named only in the file name; -1 means an unreadable reply.
        stem = "review" if file == "-" else Path(file).stem
        scores = [float(score) for score in record["score"]]
        scored = len(scores) == 2 and min(scores) > 0
        # The reviewer's name ends with the prompt's: gpt-4-0328-generic, -coding and -math are one judge.
        judge = str(record.get("reviewer_id") or "unknown").removesuffix("-generic").removesuffix("-coding")
        yield {
            "id": str(record["question_id"]), "a": f"{stem}: Assistant 1", "b": f"{stem}: Assistant 2",
            "judge": judge.removesuffix("-math"), "order": "ab", "scores": scores if scored else None,
            "verdict": better(*scores) if scored else None,
        }  # fmt: skip
    else:
        raise Failure(f"{file}: not a judgment ({', '.join(list(record)[:6])}); vtools judge writes them")


def better(a: float, b: float) -> str:
    """The verdict that follows from two scores."""
    return "tie" if a == b else "a" if a > b else "b"
