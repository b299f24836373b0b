"""A gate for cron: whether a model is as good as another, by a margin, at 95 % confidence."""

import re
from dataclasses import dataclass
from typing import Any

from vtools.process import Failure, TryAgain, UsageFailure
from vtools.report import headline

FORM = re.compile(
    r"(?:(?P<measure>win rate|score)\s*:)?\s*(?P<left>\S.*?)\s*(?P<sign>>=|>)\s*(?P<right>\S.*?)"
    r"(?:\s+(?P<plus>[+−-])\s*(?P<margin>[0-9]+(?:\.[0-9]+)?)\s*%)?\s*"
)
EXAMPLE = "as in 'B >= A - 2%' or 'score: tuned > base + 1.5%'"
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gate:
    """The condition `left >= right + margin`, or `>` if it is `strict`.

    Win rates, of which a tie is half a win, are compared by their difference: 49 % against 51 % are - 2 %. Scores are
    compared by their ratio: 98 % of the other's total score are - 2 %.
    """

    text: str
    measure: str
    left: str
    right: str
    strict: bool
    margin: float


def read(text: str) -> Gate:
    """The gate of an option. Raises UsageFailure."""
    found = FORM.fullmatch(text.strip())
    if not found:
        raise UsageFailure(f"--gate {text!r} is no condition: write one {EXAMPLE}")
    margin = float(found["margin"] or 0) / 100 * (1 if found["plus"] == "+" else -1)
    if found["left"] == found["right"]:
        raise UsageFailure(f"--gate {text!r} compares a model with itself: write one {EXAMPLE}")
    return Gate(text, found["measure"] or "win rate", found["left"], found["right"], found["sign"] == ">", margin)


def check(gate: Gate, found: dict[str, Any]) -> str:
    """Why the gate is passed, in one line.

    It is passed if the whole 95 % interval fulfils the condition, failed if none of it does. Raises Failure if it is
    failed, TryAgain if it is undecided, and UsageFailure if there is no such pair of models.
    """
    table, flipped = _table(gate, found)
    value, ends, need, what = _measured(gate, table, flipped)
    said = f"gate {gate.text!r}: {what} is "
    if value is None:
        raise TryAgain(f"{said}not known, so it is undecided: judge more questions")
    said += f"{value:.1%}, needed is {'more than' if gate.strict else 'at least'} {need:.1%}"
    if ends is None:
        raise TryAgain(f"{said}; undecided, as {table['n']} questions are too few for an interval: judge more")
    said += f" ({headline.level(table)}: {headline.percents(ends)}, {table['n']} questions)"
    if ends[0] > need or (ends[0] == need and not gate.strict):
        return f"{said}: passed"
    if ends[1] < need or (ends[1] == need and gate.strict):
        raise Failure(f"{said}: failed")
    raise TryAgain(f"{said}: undecided; judge more questions")


def _table(gate: Gate, found: dict[str, Any]) -> tuple[Table, bool]:
    """The table of the gate's models, and whether its left one is a. A and B also name the models of an only table."""
    tables = headline.decisive(found)
    named = [table for table in tables if {table["a"], table["b"]} == {gate.left, gate.right}]
    if not named and {gate.left, gate.right} == {"A", "B"} and len(tables) == 1:
        return tables[0], gate.left == "A"
    if len(named) == 1:
        return named[0], gate.left == named[0]["a"]
    if named:
        judges = ", ".join(table["judge"] for table in named)
        raise UsageFailure(f"--gate {gate.text!r}: several judges ({judges}) without a table of them all: give one's")
    known = "; ".join(f"{table['a']} and {table['b']}" for table in tables) or "none"
    raise UsageFailure(f"--gate {gate.text!r}: no such pair of models was judged; there are: {known}")


def _measured(gate: Gate, table: Table, flipped: bool) -> tuple[float | None, list[float] | None, float, str]:
    """The measure of the gate's left model, its interval, what it must be, and its name."""
    if gate.measure == "win rate":
        value, ends = table["win_rate"], table["win_rate_ci"]
        if flipped:
            value, ends = None if value is None else 1 - value, ends and [1 - ends[1], 1 - ends[0]]
        # a's rate is 1 - b's: b >= a + margin where b >= (1 + margin) / 2
        return value, ends, (1 + gate.margin) / 2, f"the win rate of {gate.left}"
    value, ends = table["score_ratio"], table["score_ratio_ci"]
    if flipped:
        value = 1 / value if value else None
        ends = [1 / ends[1], 1 / ends[0]] if ends and ends[0] else None
    return value, ends, 1 + gate.margin, f"the score of {gate.left} over {gate.right}'s"
