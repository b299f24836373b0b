"""CSV and TSV as lines of JSON: each row an object, its keys from the header."""

import csv
import sys
from collections.abc import Collection, Iterator
from typing import Any

from vtools.records import syntax

SEPARATORS = ",\t;|"
Row = tuple[bytes, str, int, str | None, str | None]  # the fields of a `streams.Value`


def rows(lines: Iterator[Any], named: Collection[str]) -> Iterator[Row]:
    """The rows of a table whose lines are values; `named` are the columns that it must have.

    A row may take several lines, where its cells are quoted.
    """
    import orjson

    csv.field_size_limit(sys.maxsize)
    taken: list[Any] = []
    texts = _texts(lines, taken)
    for text in texts:
        if text.strip():
            break
    else:
        return
    first = taken[-1]
    if first.torn:
        yield first.raw, first.file, first.number, first.torn, None
        return
    if kind := syntax.kind(first.raw) if text.lstrip().startswith("<") else None:
        yield first.raw, first.file, first.number, None, kind
        return
    headers = {separator: _cells(text, separator) for separator in SEPARATORS}
    separator = max(headers, key=lambda each: (sum(name in headers[each] for name in named), len(headers[each])))
    header = headers[separator]
    missing = [name for name in named if header.count(name) != 1]
    if missing:
        shown = ", ".join(header[:12]) + ", ..." * (len(header) > 12)
        how_often = "twice" if missing[0] in header else "not"
        yield (
            first.raw,
            first.file,
            first.number,
            None,
            f"the column {missing[0]} is {how_often} in the header: {shown}",
        )
        return
    reader = csv.reader(texts, delimiter=separator, strict=True)
    while True:
        taken.clear()
        wrong, cells = None, []
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            wrong = "a quote in this row is not closed, or stands inside a cell"
        if not taken:
            continue
        start, last = taken[0], taken[-1]
        raw = b"\n".join(line.raw for line in taken)
        if last.torn:
            yield raw, start.file, start.number, last.torn, None
            return
        if any(cells[len(header) :]):
            wrong = f"{len(cells)} cells, and {len(header)} in the header; cells with a separator in them need quotes"
        if wrong is None and cells:
            row = dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=False))
            try:
                yield orjson.dumps(row), start.file, start.number, None, None
            except orjson.JSONEncodeError:
                wrong = "not UTF-8; convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        if wrong is not None:
            yield raw, start.file, start.number, None, wrong


def _texts(lines: Iterator[Any], taken: list[Any]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        raw = line.raw.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.raw
        yield raw.decode("utf-8", "surrogateescape") + "\n"


def _cells(text: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([text], delimiter=separator), [])]
