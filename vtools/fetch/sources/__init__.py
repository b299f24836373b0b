"""The sources of `vtools fetch`, one module each.

To add one, write a module beside these and name it in OBJECTS, and in PAGES or DATABASES if that is where its objects
are. The docstring's first line is its line in `vtools fetch --list-sources`, the rest is the shape. A module has

    NAME                     the `kind` of its records' `source`
    KEYS                     keys of which each of its objects has at least one
    sniff(value)             whether an object with one of these keys is one of its conversations
    read(value, branches)    the records of that object, built with `turns.record`; raises Reject. `branches` is "all"
                             or "current": every branch of a conversation, or the one that its page shows
    sniff_page(page)         of a module in PAGES: whether it can read this HTML page
    page_objects(page)       the objects of that page
    sniff_tables(tables)     of a module in DATABASES: whether an SQLite database with these tables is its own
    table_objects(database, tables)   the objects of that database

claude.py is a good one to begin from; its tests are in tests/test_fetch_claude.py.
"""

import functools
from typing import Any

from vtools.fetch import html, sqlite
from vtools.fetch.sources import (
    chatgpt,
    chatgpt_page,
    claude,
    function_calls,
    llm,
    lm_studio,
    open_assistant,
    open_webui,
    openai_preferences,
    records,
    sharegpt,
    wildchat,
)  # fmt: skip
from vtools.records import conversation, streams
from vtools.records.jsonl import Record
from vtools.records.naming import NONE, Names

OBJECTS: tuple[Any, ...] = (
    chatgpt, chatgpt_page, claude, sharegpt, open_assistant, wildchat, openai_preferences, function_calls, llm,
    open_webui, lm_studio,
)  # fmt: skip
NAMES = (*(source.NAME for source in OBJECTS), *records.SHAPES)
PAGES = (chatgpt_page, sharegpt)
DATABASES = (llm, open_webui)
KINDS = (
    streams.Kind(b"<", (".html", ".htm"), functools.partial(html.values, PAGES)),
    streams.Kind(sqlite.MAGIC, (".db", ".sqlite", ".sqlite3"), functools.partial(sqlite.values, DATABASES)),
)
_KEYS = frozenset(key for source in OBJECTS for key in source.KEYS)


def read(value: Record, names: Names = NONE, branches: str = "current") -> list[Record]:
    """The records of an object of any source, each with the `kind` of its source. Raises Reject."""
    if not names.columns and not _KEYS.isdisjoint(value):
        for source in OBJECTS:
            if not value.keys().isdisjoint(source.KEYS) and source.sniff(value):
                found = [conversation.read(record) for record in source.read(value, branches)]
                for record in found:
                    record["source"] = {"kind": source.NAME, **record["source"]}
                return found
    return [records.read(value, names)]


def table() -> str:
    """The sources for people: the name of each, and the first line of its docstring."""
    rows = [(source.NAME, (source.__doc__ or "").partition("\n")[0]) for source in (*OBJECTS, records)]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name.ljust(width)}  {about}\n" for name, about in rows)
