"""Counts as a table with bars, for a terminal."""
# ruff: noqa: TID253

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vtools.process import shown

WIDTH = 32  # of a bar


def show(summary: dict[str, Any]) -> None:
    """Print a summary on stderr: numbers, then counts with bars; or two summaries side by side."""
    console = Console(stderr=True, highlight=False)
    if "changed" in summary:
        console.print(_changes(summary["changed"]))
        return
    numbers = Table(box=None, show_header=False, pad_edge=False)
    numbers.add_column(min_width=20)
    numbers.add_column(justify="right")
    for key, value in summary.items():
        if not isinstance(value, dict):
            numbers.add_row(_words(key), _number(value))
    console.print(numbers)
    for key, value in summary.items():
        if isinstance(value, dict) and value and not all(isinstance(count, int | dict) for count in value.values()):
            console.print(Text(f"\n{_words(key)}", style="bold"))
            for name, told in value.items():
                console.print(Text(f"{name}  {shown(str(told))}"))
        elif isinstance(value, dict) and value:
            console.print(Text(f"\n{_words(key)}", style="bold"))
            console.print(_bars(value))


def _bars(counts: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=20)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    if counts and all(isinstance(count, dict) for count in counts.values()):  # of each host, by status
        counts = {f"{name} {status}": count for name, inner in counts.items() for status, count in inner.items()}
    total, most = sum(counts.values()) or 1, max(counts.values()) or 1
    for name, count in counts.items():
        bar = "█" * round(WIDTH * count / most) or ("▏" if count else "")
        table.add_row(_words(name), _number(count), f"{count / total:.1%}", Text(bar, style="cyan"))
    return table


def _changes(changed: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "before", "after", "change"):
        table.add_column(title, justify="right" if title else "left")
    for path, change in changed.items():
        percent = "" if change["percent"] is None else f"{change['percent']:+,.1f} %"
        table.add_row(_words(path), _number(change["before"]), _number(change["after"]), percent)
    return table


def _number(value: Any) -> Text:
    return Text(f"{value:,}" if isinstance(value, int | float) else str(value))


def _words(key: str) -> Text:
    """A name from the data, without characters that could control the terminal."""
    return Text(shown(key.replace("_", " ")))
