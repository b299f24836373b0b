"""Pairs of models whose judgments ended once it was sure which is better: what counts, and how sure it is."""

from typing import Any

from vtools.process import Failure
from vtools.records.comparison import WON, Design, SequentialTest
from vtools.report.units import Unit

GOOD = {"a": 0.0, "tie": 1.0, "b": 1.0}  # whether b is as good or better, by the outcome


def counted(units: list[Unit]) -> tuple[list[Unit], dict[str, Any] | None]:
    """The units that count, and the part of a table that the run's test decides; None if it was an ordinary run, of
    which the first answered unit tells.

    If the run could stop early, its questions count in their random order, up to the one that decided. Those that were
    under way beyond it would make the result depend on how fast verdicts come. The intervals are the test's, which hold
    wherever one stops; a question that lacks a verdict has an unknown result, which widens them. Raises Failure for a
    field `stopping` that is none of ours.
    """
    answered = [unit for unit in units if not unit.unanswered]
    if not answered or answered[0].stopping is None:
        return units, None
    design, _ = _stamp(answered[0])
    known = {}
    for unit in answered:
        if unit.stopping is not None:
            own, place = _stamp(unit)
            if own == design:
                known[place] = unit
    won, good = SequentialTest(design.level, design.of), SequentialTest(design.level, design.of)
    for place in range(1, max(known) + 1):
        found = known.get(place)
        result = found.outcome("strict") if found and len(list(found.orders())) == design.orders else None
        won.add(WON.get(result or ""))
        good.add(GOOD.get(result or ""))
        if won.decided:
            break
    kept = [unit for place, unit in sorted(known.items()) if place <= won.count]
    stopped = {
        "level": design.level,
        "decided": won.decided,
        "after": won.count,
        "of": design.of,
        "left_out": len(answered) - len(kept),
    }
    intervals: dict[str, Any] = {"win_rate_ci": list(won.interval()), "as_good_ci": list(good.interval())}
    intervals |= {"score_ratio_ci": None, "game_rate_ci": None}
    return [unit for unit in units if unit.unanswered] + kept, {"stopping": stopped, **intervals}


def _stamp(unit: Unit) -> tuple[Design, int]:
    """The design of the run that a unit is of, and its place."""
    try:
        return Design.read(unit.stopping or {}), int((unit.stopping or {})["place"])
    except (KeyError, TypeError, ValueError):
        raise Failure(f"question {unit.question}: its field stopping is not one that vtools judge writes") from None
