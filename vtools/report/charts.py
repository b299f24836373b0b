"""The charts of a report: who won how often, how sure that is, and in which categories."""

from typing import Any

from vtools import plots
from vtools.plots import Chart
from vtools.process import Failure
from vtools.report import headline
from vtools.report.grades import by_rubric

Table = dict[str, Any]


def charts(found: dict[str, Any]) -> list[Chart]:
    """All charts that the contents of a report allow. Raises Failure if there is none."""
    tables, grades = headline.decisive(found), found["grades"]
    drawn = [_wins(tables)] if tables else []
    if len(found["pairs"]) > 1:
        drawn += _win_rates(tables if len(tables) > 1 else [*tables, *found["pairs"]])
    drawn += [_ratings(group) for group in found.get("ratings", [])]
    if len(tables) > 1:
        drawn += _categories(tables)
    if grades:
        drawn += _grades(grades)
    if not drawn:
        raise Failure("no chart: no judgment has a verdict or a score")
    return drawn


def _wins(tables: list[Table]) -> Chart:
    """Wins, ties and losses: one bar for each pair and, if there is one pair only, for each of its categories."""
    rows = [(f"B: {table['b']}\nA: {table['a']}", bar(table)) for table in tables]
    if len(tables) == 1:
        rows += [(name, bar(row)) for name, row in tables[0]["categories"].items()]
    names = (name for table in tables for name in table.get("judges") or [table["judge"]])
    title = f"Judged by {', '.join(dict.fromkeys(names))}\nThe further B's wins reach to the right, the better B"
    return plots.stacked_bars(title, "share of the questions", rows)


def bar(counted: Table) -> dict[str, int]:
    """The parts of a bar."""
    return {name: counted[key] for name, key in (("B wins", "b_wins"), ("tie", "ties"), ("A wins", "a_wins"))}


def _win_rates(tables: list[Table]) -> list[Chart]:
    pairs = {(table["a"], table["b"]) for table in tables}
    rows = [
        (
            f"B: {table['b']}\nA: {table['a']}{_judge(table) if len(pairs) < len(tables) else ''}",
            table["win_rate"],
            table["win_rate_ci"],
        )
        for table in tables
        if table["win_rate"] is not None
    ]
    title = "B's win rate, ties half, with its interval\nLeft of one half A is better, right of it B"
    return [plots.intervals(title, "win rate of B", rows, 0.5)] if rows else []


def _judge(table: Table) -> str:
    return "\nby all judges" if "judges" in table else f"\nby {table['judge']}"


def _categories(tables: list[Table]) -> list[Chart]:
    """Each model's mean win rate over its opponents, by category."""
    names = sorted({name for table in tables for name in table["categories"]})
    rates: dict[str, dict[str, list[float]]] = {}
    for table in tables:
        for name, row in table["categories"].items():
            if row["win_rate"] is not None:
                rates.setdefault(table["a"], {}).setdefault(name, []).append(1 - row["win_rate"])
                rates.setdefault(table["b"], {}).setdefault(name, []).append(row["win_rate"])
    if not rates:
        return []
    values = [[_mean(rates[model].get(name, [])) for name in names] for model in rates]
    return [plots.heat_map("Win rate by category, the mean over all opponents", list(rates), names, values)]


def _ratings(group: Table) -> Chart:
    """The ratings of all models, with their ranks."""
    rows = [(f"{row['model']}{_rank(row['rank'])}", row["rating"], row["rating_ci"]) for row in group["models"]]
    return plots.intervals(f"Ratings against {group['baseline']}, with intervals", "points", rows)


def _rank(ends: list[int] | None) -> str:
    if ends is None:
        return ""
    return f"\nrank {ends[0]}" + (f" to {ends[1]}" if ends[1] > ends[0] else "")


def _grades(grades: list[Table]) -> list[Chart]:
    """The mean grades of each judge and rubric, best model first, with intervals; and by category."""
    drawn = []
    known = (table for table in grades if table["mean"] is not None)
    for (judge, rubric), tables in by_rubric(known).items():
        rows = [(table["model"], table["mean"], table["mean_ci"]) for table in tables]
        drawn.append(plots.intervals(f"Mean grades by {judge}, rubric {rubric}, with intervals", "mean grade", rows))
        names = sorted({name for table in tables for name in table["categories"]})
        values = [[table["categories"].get(name) for name in names] for table in tables]
        means = [value for line in values for value in line if value is not None]
        if means:
            models, ends = [table["model"] for table in tables], (min(means), max(means))
            title = f"Mean grades by {judge} and category"
            drawn.append(plots.heat_map(title, models, names, values, ends, "{:.1f}"))
    return drawn


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
