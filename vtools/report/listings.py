"""The further tables of a report in words, for the terminal and the page: ratings, grades, agreement, checks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vtools.report.grades import by_rubric
from vtools.report.headline import percents

AT_ONCE = 6  # categories beside each other
Found = dict[str, Any]


class Listing(NamedTuple):
    """A table: its title, the heads of its columns, its rows, and how many of the columns are names."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    names: int = 1


def listings(found: Found) -> Iterator[Listing]:
    """All that a report has beside its pairs of models."""
    for group in found.get("ratings", []):
        yield from _ratings(group)
    for each in found.get("length_adjusted", []):
        yield _length(each)
    yield from _grades(found["grades"])
    if agreement := found.get("agreement"):
        yield _agreement(agreement)
    if own := found.get("own_family"):
        yield _own_family(own)
    if checks := found.get("checks"):
        yield _checks(checks)


def _ratings(group: Found) -> Iterator[Listing]:
    """The models of a group, best first, and what the first place gives with each judge."""
    rows = [
        [
            row["model"],
            f"{row['rating']:+.0f}",
            "-" if row["rating_ci"] is None else "{:+.0f} to {:+.0f}".format(*row["rating_ci"]),
            "-" if row["rank"] is None else _rank(row["rank"]),
            _percent(row["win_rate"]),
            f"{row['games']:g}",
        ]
        for row in group["models"]
    ]
    title = f"ratings against {group['baseline']}: 400 points are odds of ten to one"
    yield Listing(title, ["model", "rating", "95 %", "rank", "wins", "games"], rows)
    if group["first_place"]:
        rows = [[judge, _percent(each["wins"]), _ends(each["wins_ci"])] for judge, each in group["first_place"].items()]
        yield Listing("how often the first of two equal answers wins", ["judge", "wins", "95 %"], rows)
    if group["style"]:
        yield _style(group)


def _style(group: Found) -> Listing:
    """What length and layout win, in a fit of their own."""
    rows = [[name, _percent(each["wins"]), _ends(each["wins_ci"])] for name, each in group["style"].items()]
    title = "how often the one with more of it, by a standard deviation, of two equal answers wins"
    return Listing(title, ["of", "wins", "95 %"], rows)


def _length(found: Found) -> Listing:
    """Win rates against a baseline, as they are and as they would be with answers of its length."""
    rows = [
        [row["model"], str(row["n"]), _percent(row["win_rate"]), _percent(row["adjusted"])] for row in found["models"]
    ]
    title = f"win rates against {found['baseline']}, adjusted for the length of answers by questions and models"
    return Listing(f"{title}\njudge: {found['judge']}", ["model", "n", "wins", "adjusted"], rows)


def _rank(ends: Sequence[int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _grades(grades: list[Found]) -> Iterator[Listing]:
    """The mean grades by each judge and rubric, best model first, then by category."""
    for (judge, rubric), tables in by_rubric(grades).items():
        turns = sorted({turn for table in tables for turn in table["turns"]})
        turns = turns if len(turns) > 1 else []
        rows = [
            [
                table["model"],
                *(str(table[key]) for key in ("n", "unanswered", "unparsed")),
                _mean(table["mean"]),
                "-" if table["mean_ci"] is None else " to ".join(map(_mean, table["mean_ci"])),
                *(_mean(table["turns"].get(turn)) for turn in turns),
            ]
            for table in tables
        ]
        heads = ["model", "n", "no answer", "unparsed", "mean", "95 %", *(f"turn {turn}" for turn in turns)]
        yield Listing(f"judge: {judge}\nrubric: {rubric}", heads, rows)
        categories = sorted({name for table in tables for name in table["categories"]})
        for start in range(0, len(categories), AT_ONCE):
            names = categories[start : start + AT_ONCE]
            rows = [[table["model"], *(_mean(table["categories"].get(name)) for name in names)] for table in tables]
            yield Listing("", ["model", *names], rows)


def _agreement(agreement: Found) -> Listing:
    rows = [
        [
            *each["judges"],
            str(each["n"]),
            _percent(each["agreement"]),
            _percent(each["without_ties"]),
            "-" if each["kappa"] is None else f"{each['kappa']:.2f}",
            "-" if each["kappa_ci"] is None else "{:.2f} to {:.2f}".format(*each["kappa_ci"]),
        ]
        for each in agreement["two"]
    ]
    title = "agreement of the judges"
    if agreement["alpha"] is not None:
        title += f" (Krippendorff's alpha of all: {agreement['alpha']:.2f})"
    return Listing(title, ["judge", "and", "n", "agree", "no ties", "kappa", "95 %"], rows, names=2)


def _own_family(own: list[Found]) -> Listing:
    rows = [
        [
            *(each[key] for key in ("judge", "model", "against")),
            str(each["n"]),
            f"{100 * each['difference']:+.1f}",
            "-"
            if each["difference_ci"] is None
            else "{:+.1f} to {:+.1f}".format(*(100 * end for end in each["difference_ci"])),
        ]
        for each in own
    ]
    others = " or ".join(dict.fromkeys(each["by"] for each in own))
    title = f"points of win rate that judges give their own family more than {others} do"
    return Listing(title, ["judge", "model", "against", "n", "points", "95 %"], rows, names=3)


def _checks(checks: list[Found]) -> Listing:
    sizes = list(dict.fromkeys(k for each in checks for k in each["pass"]))
    rows = []
    for each in checks:
        shares = [each["pass"].get(k) for k in sizes]
        cells = ["-" if share is None else f"{share['rate']:.1%}" for share in shares]
        rows.append([each["model"], str(each["questions"]), *cells])
    return Listing("checked by a program", ["model", "questions", *(f"pass@{k}" for k in sizes)], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ends(ends: list[float] | None) -> str:
    return "-" if ends is None else percents(ends)


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
