"""What a report says first: who is better, by how much, and whether that is sure."""

from collections.abc import Callable
from typing import Any

from vtools.report.grades import by_rubric

Table = dict[str, Any]
Found = dict[str, Any]


def lines(found: Found, name: Callable[[str], str] = str) -> tuple[str, str]:
    """Two lines: who is better by how much; and whether that is sure. `name` may shorten the models' names."""
    tables = decisive(found)
    if len(tables) == 1:
        return _one_pair(tables[0], name)
    if len(groups := found.get("ratings") or []) == 1:
        return _ratings(groups[0], name)
    if tables:
        return _pairs(tables, name)
    return _grades(found["grades"], name) if found["grades"] else _checks(found["checks"], name)


def shortened(name: str, most: int = 18) -> str:
    """A name without its middle, where it is too long: versions and sizes stand at the end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def decisive(found: Found) -> list[Table]:
    """One table per pair of models and judge, where several judges' panel stands for them."""
    together = [(table["a"], table["b"]) for table in found["panels"]]
    return [*found["panels"], *(each for each in found["pairs"] if (each["a"], each["b"]) not in together)]


def better(table: Table) -> str | None:
    """`a` or `b`, who is surely better, by the test over all pairs and by the interval; None if that is not sure."""
    return table["better"] if table["sure"] else None


def level(table: Table) -> str:
    """How sure the intervals of a table are."""
    return f"{100 * table['stopping']['level'] if table['stopping'] else 95:.4g} %"


def percents(ends: list[float]) -> str:
    """An interval of shares."""
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def _one_pair(table: Table, name: Callable[[str], str]) -> tuple[str, str]:
    a, b, rate, ends = name(table["a"]), name(table["b"]), table["win_rate"], table["win_rate_ci"]
    if rate is None:
        return f"Nothing is known of {a} and {b}:", "no judgment of them has a verdict that could be read."
    if rate < 0.5:
        a, b, rate, ends = b, a, 1 - rate, ends and [1 - ends[1], 1 - ends[0]]
    first = f"{b} beats {a} in {rate:.1%} of {table['n']} questions, ties half."
    if rate == 0.5:
        first = f"{a} and {b} each win half of {table['n']} questions, ties half."
    if ends is None:
        said = "This is sure" if better(table) else "This is not sure"
        return first, f"{said}: p = {table['p']:.2g} by an exact test; too few questions for an interval."
    if better(table):
        return first, f"This is sure: {percents(ends)}, with {level(table)} confidence."
    if ends[0] <= 0.5 <= ends[1]:
        return first, f"This is not sure: {percents(ends)}, with {level(table)} confidence; half is among that."
    return first, f"This is not sure: {percents(ends)}, but p = {table['p_holm']:.2g} by an exact test."


def _ratings(group: Table, name: Callable[[str], str]) -> tuple[str, str]:
    """Of several models on one scale: the best, and whether its rank is sure."""
    best, second = group["models"][:2]
    lead = best["rating"] - second["rating"]
    first = f"{name(best['model'])} is the best of {len(group['models'])} models, "
    first += f"{lead:.0f} points before {name(second['model'])}."
    if best["rank"] is None:
        return first, "How sure this is cannot be said: there are too few questions."
    if best["rank"][1] == 1:
        return first, "This is sure: it is the first with 95 % confidence."
    return first, f"This is not sure: with 95 % confidence its rank is 1 to {best['rank'][1]}."


def _pairs(tables: list[Table], name: Callable[[str], str]) -> tuple[str, str]:
    """Of several pairs: the model with the best mean win rate over its opponents."""
    rates: dict[str, list[float]] = {}
    for table in tables:
        if table["win_rate"] is not None:
            rates.setdefault(table["a"], []).append(1 - table["win_rate"])
            rates.setdefault(table["b"], []).append(table["win_rate"])
    if not rates:
        return "Nothing is known:", "no judgment has a verdict that could be read."
    best = max(rates, key=lambda model: sum(rates[model]) / len(rates[model]))
    won = sum(rates[best]) / len(rates[best])
    first = f"{name(best)} is the best of {len(rates)} models: it wins {won:.1%}, ties half."
    own = [table for table in tables if best in (table["a"], table["b"])]
    sure = sum(table[better(table) or ""] == best for table in own if better(table))
    said = "This is sure" if sure == len(own) else "This is not sure"
    return first, f"{said}: it surely beats {sure} of the {len(own)} that it was compared with."


def _grades(grades: list[Table], name: Callable[[str], str]) -> tuple[str, str]:
    known = [table for table in grades if table["mean"] is not None]
    if not known:
        return "Nothing is known:", "no answer has a grade that could be read."
    *_, ranked = by_rubric(known).values()  # at last all judges together, where there are several
    best, *others = ranked
    if not others:
        ends = best["mean_ci"]
        sure = f"with 95 % confidence it is {ends[0]:.2f} to {ends[1]:.2f}" if ends else "how sure it is cannot be said"
        return f"{name(best['model'])} has a mean grade of {best['mean']:.2f}.", f"There is no other model; {sure}."
    second = others[0]
    first = f"{name(best['model'])} is the best of {len(ranked)} models: {best['mean']:.2f} on average, "
    first += f"{name(second['model'])} {second['mean']:.2f}."
    if best["mean_ci"] is None or second["mean_ci"] is None:
        return first, "How sure this is cannot be said: there are too few questions."
    if best["mean_ci"][0] > second["mean_ci"][1]:
        return first, "This is sure: their 95 % intervals do not overlap."
    return first, "This is not sure: their 95 % intervals overlap."


def _checks(checks: list[Table], name: Callable[[str], str]) -> tuple[str, str]:
    best, *others = sorted(checks, key=lambda each: -each["pass"]["1"]["rate"])
    first = f"{name(best['model'])} passes {best['pass']['1']['rate']:.1%} of {best['questions']} questions at once"
    if not others:
        return f"{first}.", "There is no other model."
    second = others[0]
    first += f", {name(second['model'])} {second['pass']['1']['rate']:.1%}."
    ends, below = best["pass"]["1"]["ci"], second["pass"]["1"]["ci"]
    if ends is None or below is None:
        return first, "How sure this is cannot be said: there are too few questions."
    sure = ends[0] > below[1]
    return first, "This is sure: their 95 % intervals do not overlap." if sure else (
        "This is not sure: their 95 % intervals overlap."
    )
