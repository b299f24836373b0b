"""What is judged: the verdicts on a question, with both orders of its answers kept apart, and grades of answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vtools.records.comparison import WON
from vtools.records.jsonl import Record

Pair = tuple[str, str, str]  # judge, a, b
Graded = tuple[str, str, str]  # judge, rubric, model
Rule = Literal["mean", "strict"]  # what a question is worth to b: the mean of both orders; or half, unless they agree
Sides = tuple[str, str]
ORDERS = ("ab", "ba", "")  # a's answer is shown first; b's is; the order is not recorded


def preferred(outcomes: Sequence[str | None]) -> str | None:
    """`a` or `b`, whom more judges prefer than prefer the other, else `tie`; None without any outcome."""
    lead = outcomes.count("b") - outcomes.count("a")
    return ("b" if lead > 0 else "a" if lead < 0 else "tie") if outcomes else None


class Verdict(NamedTuple):
    """What a judge says of two answers in one order."""

    verdict: str | None  # `a`, `b`, `tie`, or None if it cannot be read
    share: float | None = None  # of the comparison that b wins: by the verdict, or by the judge's probabilities
    scores: tuple[float, float] | None = None  # of a and of b
    games: float = 1  # how many games it counts: three for a strong verdict of Arena-Hard
    words: str = ""  # the judge's reply
    voter: str | None = None  # of people's votes, whose it is


class Judgment(NamedTuple):
    """One judgment of a pair, as a format has it."""

    id: str
    judge: str
    a: str
    b: str
    order: str
    said: Verdict
    turn: int | None = None
    category: str | None = None
    key: str | None = None  # the same key is the same judgment
    prompt: str | None = None
    reported: str | None = None  # what the judge's server calls its model
    unanswered: frozenset[str] = frozenset()
    asked: tuple[str, ...] = ()
    answers: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    lengths: tuple[float, float] | None = None
    trained: bool = False
    stopping: Record | None = None

    def reversed(self) -> "Judgment":
        """The same, with a and b exchanged."""
        other = {"a": "b", "b": "a"}
        said = self.said._replace(
            verdict=other.get(self.said.verdict or "", self.said.verdict),
            share=None if self.said.share is None else 1 - self.said.share,
            scores=self.said.scores and self.said.scores[::-1],
        )
        return self._replace(
            a=self.b, b=self.a, order=self.order[::-1], said=said,
            unanswered=frozenset(map(other.__getitem__, self.unanswered)),
            answers=self.answers and self.answers[::-1], lengths=self.lengths and self.lengths[::-1],
        )  # fmt: skip


class Grade(NamedTuple):
    """The score of one turn of an answer, None if the judge's reply had none that could be read."""

    question: str
    category: str | None
    turn: int
    score: float | None
    unanswered: bool = False  # there was no answer to grade
    words: str = ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # many times faster than `statistics.fmean`, and as exact for so few


@dataclass(slots=True)
class Unit:
    """The verdicts of one judge on the answers of a and b to one question (or one turn of it).

    The two orders are kept apart. Repeats inside an order are averaged, so that both orders weigh the same.
    """

    question: str
    category: str | None = None
    turn: int | None = None
    ab: list[Verdict] = field(default_factory=list)  # a's answer is shown first
    ba: list[Verdict] = field(default_factory=list)  # b's answer is shown first
    unordered: list[Verdict] = field(default_factory=list)  # the file does not say which is shown first
    unanswered: set[str] = field(default_factory=set)  # `a`, `b`: whose answer is missing
    asked: tuple[str, ...] = ()  # the turns of the question, where they are known
    answers: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # of a and of b, where they are known
    lengths: tuple[float, float] | None = None  # of the answers of a and of b, in characters, where they are known
    trained: bool = False  # the question is in the training data that `vtools judge --training-data` was given
    stopping: Record | None = None  # of a run that may stop early: its design, and the place in the random order
    repeated: int = 0  # further copies of a judgment, which do not count

    def orders(self) -> Iterator[tuple[str, list[Verdict]]]:
        """The orders in which the answers were shown, each with its verdicts."""
        for order, said in zip(ORDERS, (self.ab, self.ba, self.unordered), strict=True):
            if said:
                yield order, said

    @property
    def verdicts(self) -> list[Verdict]:
        """All of them."""
        return [*self.ab, *self.ba, *self.unordered]

    @property
    def read(self) -> bool:
        """Whether there is a verdict for each order in which the judge was asked."""
        asked = [said for said in (self.ab, self.ba, self.unordered) if said]
        return bool(asked) and all(any(each.verdict for each in said) for said in asked)

    def by_order(self) -> dict[str, float]:
        """What b wins in each order by the verdicts, from 0 to 1; a tie is one half. Only orders with a verdict."""
        return {
            order: _mean(known)
            for order, said in self.orders()
            if (known := [WON[each.verdict] for each in said if each.verdict])
        }

    def share(self, rule: Rule = "mean") -> float | None:
        """What b wins of the question, from 0 to 1; None if an order lacks a verdict.

        By `mean`, the mean of both orders: a win and a tie are three quarters. By `strict`, a question is won only if
        it is won in every order, and else a half.
        """
        if not self.read:
            return None
        shares = list(self.by_order().values())
        if rule == "strict":
            return 1.0 if min(shares) > 0.5 else 0.0 if max(shares) < 0.5 else 0.5
        return _mean(shares)

    def outcome(self, rule: Rule = "mean") -> str | None:
        """Who wins the question: `a`, `b` or `tie`; None if an order lacks a verdict."""
        share = self.share(rule)
        return None if share is None else "b" if share > 0.5 else "a" if share < 0.5 else "tie"

    @property
    def flipped(self) -> bool:
        """Whether the verdict changes with the order."""
        return (
            bool(self.ab and self.ba and self.read)
            and len({(share > 0.5) - (share < 0.5) for share in self.by_order().values()}) > 1
        )

    @property
    def games(self) -> tuple[float, float]:
        """What b won of all games, and their number: one for each order, three where Arena-Hard's verdict is strong."""
        won = number = 0.0
        for _, said in self.orders():
            known = [each for each in said if each.share is not None]
            won += sum((each.share or 0) * each.games for each in known) / len(known) if known else 0
            number += sum(each.games for each in known) / len(known) if known else 0
        return won, number

    @property
    def score(self) -> tuple[float, float] | None:
        """The mean scores of a and b over the orders, if every order came with scores."""
        means = []
        for _, said in self.orders():
            known = [each.scores for each in said if each.scores]
            if len(known) < sum(each.verdict is not None for each in said) or not known:
                return None
            means.append(known[0] if len(known) == 1 else tuple(map(_mean, zip(*known, strict=True))))
        return (_mean([each[0] for each in means]), _mean([each[1] for each in means])) if means else None


@dataclass(slots=True)
class Judgments:
    """Those of pairs, by pair of models, then by question; those of single answers, by model; and what was odd."""

    pairs: dict[Pair, dict[str, Unit]] = field(default_factory=dict)
    grades: dict[Graded, list[Grade]] = field(default_factory=dict)
    checks: dict[str, dict[str, list[bool]]] = field(default_factory=dict)  # of programs, by model, then by question
    prompts: dict[Pair, dict[str, int]] = field(default_factory=dict)  # how many judgments by which prompt
    reported: dict[Pair, dict[str, int]] = field(default_factory=dict)  # how many by which model, as its server says
    contradicted: dict[Pair, int] = field(default_factory=dict)  # verdicts against their own scores
    copies: int = 0  # rows dropped as exact duplicates, in formats that have no keys
