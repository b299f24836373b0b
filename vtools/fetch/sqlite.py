"""SQLite databases as the objects of the conversations in them."""

import contextlib
import os
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any

from vtools.records import jsonl, streams
from vtools.records.unpacking import Torn

MAGIC = b"SQLite format 3\0"


def values(sources: Any, chunks: Iterator[bytes], file: str) -> Iterator[streams.Value]:
    """The objects that the first of these sources that knows a database's tables finds in it.

    A file is opened in place, as its newest rows may be in another beside it (its write-ahead log); anything else is
    copied to disk first.
    """
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            path = file
            if not _is_database(file):
                spool = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".db"))
                spool.writelines(chunks)
                spool.flush()
                path = spool.name
            place = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode=ro"
            database = stack.enter_context(contextlib.closing(sqlite3.connect(place, uri=True)))
            database.text_factory = lambda text: text.decode("utf-8", "replace")
            database.row_factory = sqlite3.Row
            named = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")  # a view might never end
            tables = {row["name"]: columns(database, row["name"]) for row in named.fetchall()}
            for source in sources:
                if source.sniff_tables(tables):
                    for found in source.table_objects(database, tables):
                        number += 1
                        yield streams.Value(jsonl.dumps(found), file, number)
                    return
            known = ", ".join(list(tables)[:8]) or "none"
            why = f"an SQLite database of no kind that is read (its tables: {known}); export its rows as JSON or CSV"
            yield streams.Value(b"", file, 1, foreign=why)
    except Torn as torn:
        yield streams.Value(b"", file, number + 1, torn=str(torn))
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        yield streams.Value(b"", file, number + 1, torn=f"the SQLite database is damaged or locked: {error}")


def _is_database(file: str) -> bool:
    """Whether this is the name of the database itself, not of standard input, nor of what it is packed in."""
    if file == "stdin" or not os.path.isfile(file):
        return False
    with open(file, "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def columns(database: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table."""
    return {row["name"] for row in database.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def rows(database: sqlite3.Connection, query: str, *values: Any) -> Iterator[dict[str, Any]]:
    """The rows of a query; bytes are read as UTF-8."""
    for row in database.execute(query, values):
        yield {
            key: row[key].decode("utf-8", "replace") if isinstance(row[key], bytes) else row[key]
            for key in row.keys()  # noqa: SIM118  a row's own iteration gives values
        }
