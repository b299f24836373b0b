"""CSV and TSV as lines of JSON: each row an object, its keys from the header."""

import csv
import itertools
import sys
from collections.abc import Collection, Iterator
from typing import Any

from vtools.records import syntax

SEPARATORS = ",\t;|"
Row = tuple[bytes, str, int, str | None, str | None]  # the fields of a `streams.Value`


def rows(lines: Iterator[Any], named: Collection[str]) -> Iterator[Row]:
    """The rows of a table whose lines are values; `named` are the columns that it must have.

    A row may take several lines, where its cells are quoted. Without a good header there is one row, which says so.
    """
    import orjson

    csv.field_size_limit(sys.maxsize)
    taken: list[Any] = []
    texts = _texts(lines, taken)
    text = next((text for text in texts if text.strip()), "")
    if not text:
        return
    header, separator, wrong = _header(text, named)
    if taken[-1].torn or wrong:
        first = taken[-1]
        yield first.raw, first.file, first.number, first.torn, None if first.torn else wrong
        return
    reader = csv.reader(texts, delimiter=separator, strict=True)
    while True:
        taken.clear()
        cells: list[str] = []
        wrong = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            wrong = "a quote in this row is not closed, or stands inside a cell"
        raw, torn = b"\n".join(line.raw for line in taken), taken[-1].torn or None
        if any(cells[len(header) :]):
            wrong = f"{len(cells)} cells, and {len(header)} in the header; cells with a separator in them need quotes"
        if not (wrong or torn or _is_utf8(cells)):
            wrong = "not UTF-8; convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        if wrong or torn:
            yield raw, taken[0].file, taken[0].number, torn, None if torn else wrong
        elif cells:
            row = itertools.zip_longest(header, cells[: len(header)])
            yield orjson.dumps(dict(row)), taken[0].file, taken[0].number, None, None


def _header(text: str, named: Collection[str]) -> tuple[list[str], str, str | None]:
    """The cells of the header, their separator, and what is wrong."""
    if text.lstrip().startswith("<") and (page := syntax.kind(text.encode("utf-8", "replace"))):
        return [], "", page
    if "\r" in text.rstrip("\r\n"):
        return [], "", "a table with the line ends of old Macs; convert it: tr '\\r' '\\n' < FILE"
    found = {each: [cell.strip() for cell in next(csv.reader([text], delimiter=each))] for each in SEPARATORS}
    separator = max(found, key=lambda each: (sum(name in found[each] for name in named), len(found[each])))
    header = found[separator]
    missing = next((name for name in named if header.count(name) != 1), None)
    if missing is None:
        return header, separator, None
    shown = ", ".join(header[:12]) + ", ..." * (len(header) > 12)
    how_often = "twice" if missing in header else "not"
    return header, separator, f"the column {missing} is {how_often} in the header: {shown}"


def _texts(lines: Iterator[Any], taken: list[Any]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        raw = line.raw.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.raw
        yield raw.decode("utf-8", "surrogateescape") + "\n"


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
        return True
    except UnicodeEncodeError:
        return False
