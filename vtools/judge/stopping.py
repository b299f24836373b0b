"""Judging each pair of models in random order, until it is sure which is better."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from vtools.inference import journal
from vtools.inference.journal import Task
from vtools.judge.matches import Match
from vtools.records.comparison import WON, Design, SequentialTest, outcome
from vtools.records.jsonl import Record

Pair = tuple[str, str]  # the models a and b


@dataclass(slots=True)
class _Progress:
    """One pair: the places of its questions in the random order, from 1, and what is known of those that are judged.

    The test takes the questions in this order only, however fast each verdict comes: the fast ones may be others.
    """

    design: Design
    places: dict[str, int]  # by question
    test: SequentialTest
    verdicts: dict[int, list[str | None]] = field(default_factory=lambda: defaultdict(list))  # by place
    decided: str | None = None

    def add(self, place: int, verdict: str | None) -> None:
        """Add a verdict; None is one that is missing. The test ignores what comes after its decision."""
        found = self.verdicts[place]
        found.append(verdict)
        if self.decided or len(found) < self.design.orders:
            return
        while self.test.count < place - 1:  # questions that the rubric cannot ask
            self.test.add(None)
        self.test.add(WON.get(outcome(found) or ""))
        self.decided = self.test.decided


class Stopping:
    """Which of the `tasks` are still needed. The questions of all pairs are in one random order, that of the digests of
    their ids with a seed: it stays when a question is added.

    Questions that lack an answer of a pair are not among those that the pair is judged by, as nothing is asked.
    """

    def __init__(self, level: float, seed: int, tasks: Iterable[Task]) -> None:
        """Each task has a Match, or is a reject."""
        self.tasks = sorted(tasks, key=lambda task: _digest(task, seed))
        places: dict[Pair, dict[str, int]] = defaultdict(dict)
        orders = set()
        for task in self.tasks:
            match: Match | None = task.question
            if match and not match.unanswered:
                own = places[match.a, match.b]
                own.setdefault(match.question.id, len(own) + 1)
                orders.add(match.order)
        self._pairs = {
            pair: _Progress(Design(level, seed, len(own), len(orders)), own, SequentialTest(level, len(own)))
            for pair, own in places.items()
        }

    def copy(self) -> "Stopping":
        """The same, to be told other judgments."""
        other = copy.copy(self)
        other._pairs = copy.deepcopy(self._pairs)
        return other

    def needed(self, task: Task) -> bool:
        """Whether a task is still to be asked: not if its question comes after the one that decided. Thread-safe."""
        match: Match | None = task.question
        if match is None or match.unanswered:
            return True
        pair = self._pairs[match.a, match.b]
        return not pair.decided or pair.places[match.question.id] <= pair.test.count

    def seen(self, task: Task, record: Record | None) -> None:
        """Note the judgment of a task, None if there is none. They come in the order of the tasks."""
        match: Match | None = task.question
        if match and not match.unanswered:
            pair = self._pairs[match.a, match.b]
            pair.add(pair.places[match.question.id], record["verdict"] if record else None)

    def stamped(self, record: Record) -> Record:
        """A judgment with its place, by which `vtools report` knows that it may be one of a run that stopped early."""
        pair = self._pairs.get((record["a"], record["b"]))
        if pair is None or "unanswered" in record:
            return record
        return {**record, "stopping": pair.design.stamp(pair.places[record["id"]])}

    def said(self) -> list[str]:
        """For each pair in words what is sure, and after how many questions."""
        return [_said(a, b, pair) for (a, b), pair in self._pairs.items()]


def _said(a: str, b: str, pair: _Progress) -> str:
    sure, (low, high) = f"{100 * pair.design.level:.4g} %", pair.test.interval()
    after = f"after {pair.test.count} of {pair.design.of} questions"
    if not pair.decided:
        return f"{a} and {b}: not {sure} sure {after} which is better ({b} wins {low:.1%} to {high:.1%}, ties half)"
    better, worse, least = (b, a, low) if pair.decided == "b" else (a, b, 1 - high)
    return f"{better} is better than {worse}: {sure} sure {after} (wins at least {least:.1%}, ties half)"


def _digest(task: Task, seed: int) -> str:
    """What orders the tasks: rejects first, then the questions at random, those of all pairs together."""
    return journal.key("order", seed, task.question.question.id) if task.question else ""
