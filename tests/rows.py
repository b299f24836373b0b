"""Records read both as lines of JSON and as rows of a parquet file, where a row can be one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from chats import jsonl

from vtools.records import conversation, streams
from vtools.records import jsonl as reader
from vtools.records.jsonl import Reject
from vtools.records.naming import NONE, Names


def as_parquet(*records: Any, schema: Any = None) -> bytes:
    """A parquet file: every row has the columns of all rows, and null where it has no value."""
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    keys = list(dict.fromkeys(key for record in records for key in record))
    rows = [{key: record.get(key) for key in keys} for record in records]
    sink = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


def read(data: bytes, names: Names = NONE) -> list[Any]:
    """Each value of a file as a record, or the reason why it is none."""
    found: list[Any] = []
    for value in streams.split([data], "file", names):
        try:
            given = reader.parse(value)[0]
            found.append(given.reason if isinstance(given, Reject) else conversation.read(given, names))
        except Reject as reject:
            found.append(reject.reason)
    return found


def without_nulls(value: Any) -> Any:
    """A value without the keys that are null: a table has every column in every row."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def read_both_ways(*records: Any, names: Names = NONE) -> list[Any]:
    """The records or reasons, which must be the same for lines and for rows, each beside rows of the other shapes."""
    lines = read(jsonl(*records), names)
    rows = read(as_parquet(*records), names)
    assert without_nulls(rows) == without_nulls(lines)
    for record, line in zip(records, lines, strict=True):
        assert without_nulls(read(as_parquet(record), names)) == without_nulls([line])
    return lines
