"""Rows of parquet files: what they read as is what the same lines of JSON read as, and no value is Python's."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import uuid

import pytest
from chats import chat, jsonl, shared
from rows import as_parquet, read_both_ways

from vtools.records import streams
from vtools.records.naming import Names

pyarrow = pytest.importorskip("pyarrow")
files = pytest.importorskip("pyarrow.parquet")


def written(schema, **row) -> dict:
    """A row with one value per column, as the line that it becomes."""
    columns = pyarrow.schema([(name, schema[name]) for name in row])
    (value,) = streams.split([as_parquet(row, schema=columns)], "file")
    return json.loads(value.raw)


BYTES = b"\xff\xd8\xff"
NANO = pyarrow.scalar(1_700_000_000_000_000_001, pyarrow.timestamp("ns"))
CELLS = {
    "bytes that are a text": (pyarrow.binary(), "Grüße".encode(), "Grüße"),
    "bytes that are none": (pyarrow.binary(), BYTES, {"base64": "/9j/"}),
    "bytes in a struct": (pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}), {"bytes": BYTES, "path": "a.jpg"}, {"bytes": {"base64": "/9j/"}, "path": "a.jpg"}),
    "a whole decimal": (pyarrow.decimal128(20, 2), decimal.Decimal("7.00"), 7),
    "a decimal": (pyarrow.decimal128(20, 2), decimal.Decimal("0.25"), 0.25),
    "a decimal longer than a float": (pyarrow.decimal128(38, 20), decimal.Decimal("0.12345678901234567891"), "0.12345678901234567891"),
    "a time": (pyarrow.timestamp("us"), datetime.datetime(2023, 4, 1, 12, 30), "2023-04-01T12:30:00"),
    "a time of a zone": (pyarrow.timestamp("us", "UTC"), datetime.datetime(2023, 4, 1, 12, 30, tzinfo=datetime.UTC), "2023-04-01T12:30:00+00:00"),
    "a time with nanoseconds": (pyarrow.timestamp("ns"), NANO, "2023-11-14 22:13:20.000000001"),
    "a day": (pyarrow.date32(), datetime.date(2023, 4, 1), "2023-04-01"),
    "a time of day": (pyarrow.time64("us"), datetime.time(12, 30), "12:30:00"),
    "a duration": (pyarrow.duration("ms"), datetime.timedelta(minutes=1, milliseconds=500), 60.5),
    "a number beyond 53 bits": (pyarrow.int64(), 2**60 + 1, 2**60 + 1),
    "no number": (pyarrow.float64(), float("nan"), None),
    "a map": (pyarrow.map_(pyarrow.string(), pyarrow.string()), [("a", "b"), ("c", "d")], {"a": "b", "c": "d"}),
    "a map by numbers": (pyarrow.map_(pyarrow.int64(), pyarrow.string()), [(1, "b")], {"1": "b"}),
    "words of a dictionary": (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "en", "en"),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_becomes_json_and_not_what_python_shows(name):
    kind, cell, expected = CELLS[name]
    assert written({"cell": kind}, cell=cell) == {"cell": expected}


def test_an_id_of_16_bytes_with_a_type_of_its_own_is_written_as_its_digits():
    identity = uuid.UUID("12345678-1234-5678-1234-567812345678")
    array = pyarrow.array([identity.bytes], pyarrow.uuid())
    sink = io.BytesIO()
    files.write_table(pyarrow.table({"id": array}), sink)
    (value,) = streams.split([sink.getvalue()], "file")
    assert json.loads(value.raw) == {"id": str(identity)}


TURNS = shared("What is a reed?", "A tall grass.")["conversations"]
SHAPES = {
    "messages": {"id": "a", "messages": chat("What is a reed?", "A tall grass.")},
    "turns": {"id": "a", "conversations": TURNS},
    "a pair": {"id": "a", "prompt": "What is a reed?", "completion": "A tall grass."},
    "alpaca": {"id": "a", "instruction": "What is a reed?", "input": "", "output": "A tall grass."},
    "turns with other keys": {"id": "a", "items": [{**turn, "id": None, "model": "m"} for turn in TURNS]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_reads_as_the_line_that_it_would_be_in_json(name):
    (record,) = read_both_ways(SHAPES[name])
    assert record["id"] == "a"
    assert [message["content"] for message in record["messages"]] == ["What is a reed?", "A tall grass."]


def test_rows_of_several_shapes_in_one_table_read_each_by_its_own():
    records = read_both_ways(*(shape for name, shape in SHAPES.items() if name != "turns with other keys"))
    assert {record["messages"][1]["content"] for record in records} == {"A tall grass."}


def test_turns_that_are_maps_are_turns():
    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    row = {"conversations": [list(turn.items()) for turn in TURNS]}
    assert written({"conversations": kind}, **row) == {"conversations": TURNS}


def test_columns_of_a_table_are_named_as_those_of_a_line():
    names = Names({"sage": "assistant"}, {"messages": "talk", "id": "nr"})
    turns = [{"who": None, "role": "user", "content": "Q"}, {"who": "x", "role": "Sage", "content": "A"}]
    (record,) = read_both_ways({"nr": 3, "talk": turns}, names=names)
    assert (record["id"], [message["role"] for message in record["messages"]]) == ("3", ["user", "assistant"])


def test_what_no_row_can_hold_is_reported_after_the_rows_before_it():
    bad = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe"))

    sink = io.BytesIO()
    with files.ParquetWriter(sink, pyarrow.schema({"a": pyarrow.string()})) as writer:
        writer.write_table(pyarrow.table({"a": ["text"]}))
        writer.write_table(pyarrow.table({"a": bad}))
    *whole, last = streams.split([sink.getvalue()], "file")
    assert [value.raw for value in whole] == [b'{"a":"text"}']
    assert last.torn == "the parquet data after row 1 has a text that is not UTF-8"


def test_a_torn_or_damaged_file_is_named(vtools):
    data = as_parquet(*({"prompt": f"Q{number}", "completion": "A"} for number in range(9)))
    for broken in (data[:-20], data[:40] + b"\0" * 40 + data[80:]):
        done = vtools("fetch", stdin=broken)
        assert done.returncode == 1
        assert done.errors == "vtools fetch: stdin:1: the parquet data is damaged or ends early (--rejects FILE saves these and continues)\n"  # fmt: skip


def test_a_text_that_looks_like_the_border_of_two_files_is_a_text():
    for text in ("PAR1PAR1", "PAR1PAR1" * 50):
        data = as_parquet({"prompt": text, "completion": text})
        (value,) = streams.split([data], "file")
        assert value.foreign is None
        assert json.loads(value.raw)["prompt"] == text


def test_several_files_are_read_each_by_its_own_kind(vtools, tmp_path):
    row = {"prompt": "What is a reed?", "completion": "A tall grass."}
    (tmp_path / "a").write_bytes(as_parquet({**row, "id": "1"}))
    (tmp_path / "b").write_bytes(jsonl({**row, "id": "2"}))
    (tmp_path / "c").write_bytes(json.dumps([{**row, "id": "3"}], indent=1).encode())
    assert [record["id"] for record in vtools("fetch", "a", "b", "c").records] == ["1", "2", "3"]
