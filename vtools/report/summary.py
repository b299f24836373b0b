"""Which model is better, by how much, and how certainly: counts, measures and their intervals."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from vtools.report import bias, intervals, stopping
from vtools.report.units import Judgments, Pair, Rule, Unit

INCONSISTENT = 0.3  # published judges flip 20 to 80 % of their verdicts; above this share, warn
SURE = 0.05


class Counted(NamedTuple):
    """What is measured of a question: what b wins of it, and the scores of a and b."""

    question: str
    category: str | None
    share: float  # from 0 to 1
    score: tuple[float, float] | None


def counted(units: Iterable[Unit], rule: Rule) -> list[Counted]:
    """The units that have a verdict in each order in which they were judged."""
    return [
        Counted(unit.question, unit.category, share, unit.score)
        for unit in units
        if not unit.unanswered and (share := unit.share(rule)) is not None
    ]


def summarise(pair: Pair, every: list[Unit], rule: Rule, judgments: Judgments | None = None) -> dict[str, Any]:
    """The contents of the table of a pair as one object; `judgments` has what was odd in reading it.

    A run of `vtools judge` that could stop early is measured by the rule `strict`, by which it was stopped.
    """
    judge, a, b = pair
    units, stopped = stopping.counted(every)
    rule = "strict" if stopped else rule
    other: Rule = "mean" if rule == "strict" else "strict"
    answered = [unit for unit in units if not unit.unanswered]
    rows = counted(answered, rule)
    table: dict[str, Any] = {
        "judge": judge,
        "a": a,
        "b": b,
        "rule": rule,
        "questions": len({unit.question for unit in units}),
        "unanswered": {side: sum(side in unit.unanswered for unit in units) for side in ("a", "b")},
        "repeated": sum(unit.repeated for unit in units),
        "judged": len(answered),
        "unparsed": len(answered) - len(rows),
        **bias.position(answered),
        "one_order": sum(unit.read and bool(unit.ab) != bool(unit.ba) for unit in answered),
        **counts(rows),
        **certainty(rows),
        "other_rule": None,
        "bounds": bounds(rows, len(units)),
        **games(answered),
        "length": bias.length(answered, rule),
        "trained": bias.trained(answered, rule),
        "stopping": None,
        **(stopped or {}),
    }
    others = counts(counted(answered, other))
    if others["win_rate"] != table["win_rate"]:
        kept = ("b_wins", "ties", "a_wins", "win_rate")
        table["other_rule"] = {"rule": other, **{name: others[name] for name in kept}}
    table["categories"] = categories(rows)
    table["warnings"] = [*warnings(table), *(mixed(pair, judgments) if judgments else [])]
    return table


def counts(rows: Sequence[Counted]) -> dict[str, Any]:
    """Wins, ties and losses of b, and the totals of the scores."""
    scores = [row.score for row in rows if row.score]
    total_a, total_b = sum(a for a, _ in scores), sum(b for _, b in scores)
    wins, losses = sum(row.share > 0.5 for row in rows), sum(row.share < 0.5 for row in rows)
    return {
        "n": len(rows),
        "b_wins": wins,
        "ties": len(rows) - wins - losses,
        "a_wins": losses,
        "scored": len(scores),
        "score_a": round(total_a, 4),
        "score_b": round(total_b, 4),
        "score_ratio": total_b / total_a if total_a else None,
        "win_rate": sum(row.share for row in rows) / len(rows) if rows else None,
        "as_good": (len(rows) - losses) / len(rows) if rows else None,
    }


def certainty(rows: Sequence[Counted]) -> dict[str, Any]:
    """The intervals of the measures, what so many questions can show, and the p of both models being as good.

    The test is an exact sign test over questions, of which each counts for the model that wins more of it.
    """
    won = intervals.estimate((row.question, row.share, 1.0) for row in rows)
    good = intervals.estimate((row.question, float(row.share >= 0.5), 1.0) for row in rows)
    leads: dict[str, float] = {}
    for row in rows:
        leads[row.question] = leads.get(row.question, 0) + row.share - 0.5
    ends = won.interval if won else None
    return {
        "win_rate_ci": ends,
        "as_good_ci": good.interval if good else None,
        "score_ratio_ci": intervals.ratio_interval(
            (row.question, row.score[1], row.score[0]) for row in rows if row.score
        ),
        "effective_n": won.effective if won else None,
        "half_width": (ends[1] - ends[0]) / 2 if ends else None,
        "p": intervals.sign_test(sum(v > 0 for v in leads.values()), sum(v < 0 for v in leads.values())),
        "p_holm": None,
    }


def bounds(rows: Sequence[Counted], number: int) -> list[float] | None:
    """B's win rate if all that is missing went to A, and if it went to B."""
    won = sum(row.share for row in rows)
    return [won / number, (won + number - len(rows)) / number] if number else None


def games(units: Sequence[Unit]) -> dict[str, Any]:
    """B's share of all games, with its interval."""
    rows = []
    for unit in units:
        won, number = unit.games
        if unit.read and number:
            rows.append((unit.question, won / number, number))
    found = intervals.estimate(rows)
    return {"game_rate": found.mean if found else None, "game_rate_ci": found.interval if found else None}


def categories(rows: Sequence[Counted]) -> dict[str, Any]:
    """The counts of each category, with the interval of its win rate."""
    found = {}
    for name in sorted({row.category for row in rows if row.category}):
        own = [row for row in rows if row.category == name]
        won = intervals.estimate((row.question, row.share, 1.0) for row in own)
        found[name] = counts(own) | {"win_rate_ci": won.interval if won else None}
    return found


def decide(tables: Sequence[dict[str, Any]]) -> None:
    """Add to the tables that are printed together who is better, and whether that is sure.

    Sure is what Holm's test over all of them finds at .05 and the interval, where there is one, does not contradict. A
    run that could stop early has its own test.
    """
    tested = [table for table in tables if not table["stopping"]]
    for table, p in zip(tested, intervals.holm([table["p"] for table in tested]), strict=True):
        table["p_holm"] = p
    for table in tables:
        rate, ends = table["win_rate"], table["win_rate_ci"]
        table["better"] = None if rate is None or rate == 0.5 else "b" if rate > 0.5 else "a"
        if table["stopping"]:
            table["sure"] = table["stopping"]["decided"] is not None
        else:
            apart = ends is None or not ends[0] <= 0.5 <= ends[1]
            table["sure"] = table["better"] is not None and table["p_holm"] < SURE and apart


def mixed(pair: Pair, judgments: Judgments) -> Iterator[str]:
    """Caveats about judgments in one table that do not belong together, or contradict themselves."""
    for what, by in (("prompt", judgments.prompts), ("model behind the judge's name", judgments.reported)):
        found = {name: count for name, count in by.get(pair, {}).items() if name and count}
        if len(found) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in sorted(found.items(), key=lambda each: -each[1]))
            yield f"judgments by more than one {what} are mixed here: {listed}"
    if count := judgments.contradicted.get(pair):
        yield f"{count} verdicts contradict their own scores: the verdict counts"


def warnings(table: dict[str, Any]) -> Iterator[str]:
    """Caveats that a reader of the table must know."""
    if any(table["unanswered"].values()):
        missed = " and ".join(f"{side.upper()} has no answer to {n}" for side, n in table["unanswered"].items() if n)
        yield f"{missed} of {table['questions']} questions: these are left out, and whoever fails often gains by it"
    if table["stopping"] and table["stopping"]["left_out"]:
        yield f"{table['stopping']['left_out']} further questions were not part of what decided, and are left out"
    if table["repeated"]:
        yield f"{table['repeated']} judgments repeat one that is there, with the same key: each counts once"
    if table["unparsed"]:
        yield f"{table['unparsed']} of {table['judged']} have no verdict that could be read, and are left out"
    if table["one_order"]:
        yield f"{table['one_order']} were shown in one order only: the place of an answer may have decided"
    if table["inconsistent"] is not None and table["inconsistent"] > INCONSISTENT:
        yield f"the judge changed its mind with the order in {table['inconsistent']:.0%}: this table says little"
    if table["position_p"] is not None and table["position_p"] < SURE:
        place = "first" if table["first_won"] > table["second_won"] else "second"
        times = sorted((table["first_won"], table["second_won"]), reverse=True)
        yield f"the judge favours the answer shown {place}: it won both times {times[0]} to {times[1]}"
    if table["trained"]:
        without = table["trained"]["win_rate_without"]
        rest = "" if without is None else f"; without these, B wins {without:.1%}"
        yield f"{table['trained']['questions']} questions are in the training data{rest}"
    if table["n"] and table["scored"] < table["n"]:
        yield f"the score totals leave out {table['n'] - table['scored']} that have a verdict but no scores"
