# ruff: noqa: TID253  imported only where the table is shown
"""The report for people, on a terminal of 80 columns or fewer."""

from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from vtools.process import shown
from vtools.report import headline, wording
from vtools.report.listings import listings

WIDTH = 80
NAME = 200  # characters of a name; more are an attack or an accident
MOST = 6  # tables that are shown in full
Table = dict[str, Any]


def show(found: dict[str, Any]) -> None:
    """Print the report: two lines that say who is better, then a table for each pair of models, then the grades."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDTH)
    with console.capture() as shown_text:
        _show(console, found)
    print("\n".join(line.rstrip() for line in shown_text.get().splitlines()))  # rich fills its columns with blanks


def _show(console: Console, found: dict[str, Any]) -> None:
    first, second = headline.lines(found, headline.shortened)
    console.print(_text(first), style="bold")
    console.print(_text(second))
    tables = wording.ordered(found)
    if len(tables) > 1:
        console.print()
        console.print(_overview(tables))
    for table in tables if len(tables) <= MOST else ():
        console.print()
        _show_pair(console, table)
    if len(tables) > MOST:
        console.print("\nEach pair with its categories: --html FILE, or --json")
    for listing in listings(found):
        console.print()
        if listing.title:
            console.print(_text(listing.title), style="bold")
            console.print()
        grid = _grid(*(shown(head[:14]) for head in listing.heads), names=listing.names)
        for row in listing.rows:
            grid.add_row(*(_name(cell) for cell in row))
        console.print(grid)


def _text(words: object) -> Text:
    """Words from outside as they may be shown, cut where they are absurdly long."""
    text = str(words)
    return Text(shown(text if len(text) <= 4 * NAME else text[: 4 * NAME] + "…"))


def _name(name: str) -> Text:
    return Text(shown(name if len(name) <= NAME else name[:NAME] + "…"))


def _grid(*heads: str, names: int = 1) -> Grid:
    """A table whose first columns are names, folded where they are too long, and the others numbers."""
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        if number < names:
            grid.add_column(Text(head), overflow="fold")
        else:
            grid.add_column(Text(head), justify="right", no_wrap=True)
    return grid


def _overview(tables: list[Table]) -> Grid:
    grid = _grid("A", "B", "judge", "n", "B's rate", "95 %", "better", names=3)
    for table in tables:
        judge = "all" if "judges" in table else headline.shortened(table["judge"], 12)
        names = [Text(shown(name)) for name in (*(headline.shortened(table[side], 15) for side in "ab"), judge)]
        rate, ends = table["win_rate"], table["win_rate_ci"]
        numbers = ["-" if rate is None else f"{rate:.1%}", "-" if ends is None else headline.percents(ends)]
        grid.add_row(*names, str(table["n"]), *numbers, wording.sure(table))
    return grid


def _show_pair(console: Console, table: Table) -> None:
    console.print(_text(f"A: {table['a']}"), style="bold")
    console.print(_text(f"B: {table['b']}"), style="bold")
    console.print(_text(wording.who(table)))
    console.print()
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in wording.rows(table):
        grid.add_row(name, _text(value))
    console.print(grid)
    if table["categories"]:
        console.print()
        grid = _grid("category", "n", "B wins", "ties", "A wins", "score B/A")
        for name, row in table["categories"].items():
            ratio = "-" if row["score_ratio"] is None else f"{row['score_ratio']:.2f}"
            counts = [str(row[key]) for key in ("n", "b_wins", "ties", "a_wins")]
            grid.add_row(_name(name), *counts, ratio)
        console.print(grid)
    if table["warnings"]:
        console.print()
    for warning in table["warnings"]:
        console.print(_text(f"warning: {warning}"), style="yellow")
