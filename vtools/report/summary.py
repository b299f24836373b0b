"""Which model is better, by how much, and how certainly: counts, measures and their intervals."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from vtools.report import stopping
from vtools.report.intervals import resampled
from vtools.report.reading import Pair, Unit

INCONSISTENT = 0.3  # published judges flip 20 to 80 % of their verdicts; above this share, warn
MEASURES = ("score_ratio", "win_rate", "as_good")


class Judged(Protocol):
    """The answers to a question as they were judged: by one judge, or by several together."""

    @property
    def question(self) -> str: ...
    @property
    def outcome(self) -> str | None: ...
    @property
    def score(self) -> tuple[float, float] | None: ...


def summarise(pair: Pair, units: list[Unit], seed: int) -> dict[str, Any]:
    """The contents of the table as one object."""
    judge, a, b = pair
    units, stopped = stopping.counted(units)
    answered = [unit for unit in units if not unit.unanswered]
    counted = [unit for unit in answered if unit.outcome]
    swapped = [unit for unit in counted if len(unit.verdicts) > 1]
    flipped = [unit for unit in swapped if len(set(unit.verdicts)) > 1]
    table: dict[str, Any] = {
        "judge": judge,
        "a": a,
        "b": b,
        "questions": len({unit.question for unit in units}),
        "unanswered": {side: sum(side in unit.unanswered for unit in units) for side in ("a", "b")},
        "repeated": sum(unit.repeated for unit in units),
        "judged": len(answered),
        "unparsed": len(answered) - len(counted),
        "both_orders": len(swapped),
        "inconsistent": len(flipped) / len(swapped) if swapped else None,
        "first_won": sum(all(unit.first_won) for unit in flipped),
        "second_won": sum("tie" not in unit.verdicts and not any(unit.first_won) for unit in flipped),
        **counts(counted),
        "game_rate": game_rate(counted),
        **(stopped or {"stopping": None, **intervals(counted, seed), "game_rate_ci": game_interval(counted, seed)}),
    }
    names = sorted({unit.category for unit in counted if unit.category})
    table["categories"] = {name: counts([unit for unit in counted if unit.category == name]) for name in names}
    table["warnings"] = list(warnings(table))
    return table


def counts(units: Sequence[Judged]) -> dict[str, Any]:
    """Wins, ties and losses of b, and the totals of the scores."""
    outcomes = [unit.outcome for unit in units]
    scores = [score for unit in units if (score := unit.score)]
    total_a, total_b = sum(a for a, _ in scores), sum(b for _, b in scores)
    return {
        "n": len(units),
        "b_wins": outcomes.count("b"),
        "ties": outcomes.count("tie"),
        "a_wins": outcomes.count("a"),
        "scored": len(scores),
        "score_a": round(total_a, 4),
        "score_b": round(total_b, 4),
        "score_ratio": total_b / total_a if total_a else None,
        "win_rate": (outcomes.count("b") + outcomes.count("tie") / 2) / len(units) if units else None,
        "as_good": (outcomes.count("b") + outcomes.count("tie")) / len(units) if units else None,
    }


def intervals(units: Sequence[Judged], seed: int) -> dict[str, Any]:
    """95 % intervals of the measures, by resampling whole questions, all turns."""
    rows = []
    for unit in units:
        a, b = unit.score or (0.0, 0.0)
        won, tied = unit.outcome == "b", unit.outcome == "tie"
        rows.append((unit.question, [a, b, 1.0, won + tied / 2, float(won or tied)]))
    ends = resampled(rows, [(1, 0), (3, 2), (4, 2)], seed)
    return {f"{name}_ci": each for name, each in zip(MEASURES, ends, strict=True)}


def game_rate(units: list[Unit]) -> float | None:
    """B's share of all games."""
    won, number = (sum(column) for column in zip(*(unit.games for unit in units), strict=True)) if units else (0, 0)
    return won / number if number else None


def game_interval(units: list[Unit], seed: int) -> list[float] | None:
    """The 95 % interval of B's share of all games."""
    return resampled([(unit.question, unit.games) for unit in units], [(0, 1)], seed)[0]


def warnings(table: dict[str, Any]) -> Iterator[str]:
    """Caveats that a reader of the table must know."""
    if any(table["unanswered"].values()):
        missed = " and ".join(f"{side.upper()} has no answer to {n}" for side, n in table["unanswered"].items() if n)
        yield f"{missed} of {table['questions']} questions: these are left out, and whoever fails often gains by it"
    if table["stopping"] and table["stopping"]["left_out"]:
        yield f"{table['stopping']['left_out']} further questions were not part of what decided, and are left out"
    if table["repeated"]:
        yield f"{table['repeated']} judgments repeat a question and order: of these, the first in the file counts"
    if table["unparsed"]:
        yield f"{table['unparsed']} of {table['judged']} have no verdict that could be read, and are left out"
    if table["both_orders"] < table["n"]:
        alone = table["n"] - table["both_orders"]
        yield f"{alone} were shown in one order only: the place of an answer may have decided"
    if table["inconsistent"] is not None and table["inconsistent"] > INCONSISTENT:
        yield f"the judge changed its mind with the order in {table['inconsistent']:.0%}: this table says little"
    if table["n"] and table["scored"] < table["n"]:
        yield f"the score totals leave out {table['n'] - table['scored']} that have a verdict but no scores"
