"""One comparison of two answers to a question, with what every judge says of it and the texts that were judged."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vtools.records.question import Question
from vtools.report.reading import Known
from vtools.report.units import Pair, Rule, Unit, preferred

Turns = tuple[str, ...]


@dataclass(slots=True)
class Comparison:
    """The answers of a and b to one question (or one turn of it), and each judge's verdicts."""

    question: str
    turn: int | None
    a: str
    b: str
    rule: Rule
    judged: dict[str, Unit] = field(default_factory=dict)

    @property
    def category(self) -> str | None:
        """That of the question."""
        return next((unit.category for unit in self.judged.values() if unit.category), None)

    @property
    def outcome(self) -> str | None:
        """That of most judges; None without any verdict."""
        return preferred(self._outcomes())

    @property
    def orders_disagree(self) -> bool:
        """Whether a judge's verdict changes with the order of the answers."""
        return any(unit.flipped for unit in self.judged.values())

    @property
    def judges_disagree(self) -> bool:
        """Whether the judges' outcomes differ."""
        return len(set(self._outcomes())) > 1

    def _outcomes(self) -> list[str]:
        """Those of the judges with a verdict; a run that may stop early was stopped by `strict`."""
        every = (unit.outcome("strict" if unit.stopping else self.rule) for unit in self.judged.values())
        return [outcome for outcome in every if outcome]

    def asked(self, known: Known) -> Turns:
        """The turns of the question; none if they are not known."""
        if question := question_of(known, self.question, self.a, self.b):
            return tuple(question.turns)
        return next((unit.asked for unit in self.judged.values() if unit.asked), ())

    def answers(self, known: Known) -> tuple[Turns, Turns]:
        """The turns of a's answer and of b's; none where it is not known."""
        carried = next((unit.answers for unit in self.judged.values() if unit.answers), ((), ()))
        given = [known.answers.get((model, self.question)) for model in (self.a, self.b)]
        first, second = (tuple(answer.turns) if answer else own for answer, own in zip(given, carried, strict=True))
        return first, second


def question_of(known: Known, identity: str, *models: str) -> Question | None:
    """A question, from those that were given or from an answer that carries its own."""
    if identity in known.questions:
        return known.questions[identity]
    answers = (known.answers.get((model, identity)) for model in models)
    return next((answer.question for answer in answers if answer and answer.question), None)


def joined(pairs: dict[Pair, dict[str, Unit]], rule: Rule) -> Iterator[Comparison]:
    """The comparisons of all judges, in the order in which the judgments were read."""
    found: dict[tuple[str, str, str], Comparison] = {}
    for (judge, a, b), units in pairs.items():
        for key, unit in units.items():
            comparison = found.setdefault((a, b, key), Comparison(unit.question, unit.turn, a, b, rule))
            comparison.judged[judge] = unit
    yield from found.values()
