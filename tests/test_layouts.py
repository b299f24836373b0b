"""The reader: objects over several lines, lists of turns, and files of other kinds, each known by what is in it."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import tracemalloc

import pytest
from chats import chat, jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_streams import SIZES, VALUES, cut

from vtools.records import jsonl as reader
from vtools.records import streams
from vtools.records.jsonl import Reject
from vtools.records.naming import Names

thorough = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=4), min_size=1, max_size=5)


def parsed(data: bytes, sizes: list[int] | None = None) -> list[object]:
    """What is read: each object, or the reason why it is none."""
    found = [reader.parse(value)[0] for value in cut(data, sizes or [1 << 16])]
    return [one.reason if isinstance(one, Reject) else one for one in found]


def written(value: object, indent: int | str | None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def as_read(objects: list[dict]) -> list[dict]:
    return [reader.loads(json.dumps(one).encode())[0] for one in objects]


@thorough
@given(OBJECTS, st.sampled_from([0, 1, 4, "\t"]), st.sampled_from(["\n", "", " ", "\r\n\r\n", ",\n", "\n,"]), SIZES)
def test_objects_over_several_lines_are_read_in_any_writing_and_any_chunks(objects, indent, between, sizes):
    data = between.encode().join(written(one, indent) for one in objects)
    assert parsed(data, sizes) == as_read(objects)
    assert parsed(data + b"\n", sizes) == as_read(objects)


@thorough
@given(OBJECTS, st.sampled_from(["", " ", ", "]), SIZES)
def test_several_objects_on_one_line_are_all_read(objects, between, sizes):
    data = between.encode().join(written(one, None) for one in objects)
    assert parsed(data + b"\n", sizes) == as_read(objects)


@thorough
@given(OBJECTS, st.sampled_from([1, "\t"]), st.integers(0, 10_000), SIZES)
def test_torn_objects_over_several_lines_give_all_whole_ones_and_say_that_it_tore(objects, indent, place, sizes):
    texts = [written(one, indent) + b"\n" for one in objects]
    data = b"".join(texts)[: 2 + place % (sum(map(len, texts)) - 2)]
    whole, end = [], 0
    for one, text in zip(objects, texts, strict=True):
        end += len(text)
        if end - 1 <= len(data):
            whole.append(one)
    rest = data[sum(map(len, texts[: len(whole)])) :].strip()
    assert parsed(data, sizes) == [*as_read(whole), *["torn_input"] * bool(rest)]


BROKEN = {
    "the last bracket is missing": '{\n  "a": [\n    {\n      "b": 1\n    }\n  ]',
    "a text is not closed": '{\n  "a": "some words',
    "a list is not closed": '{\n  "a": [\n    1',
    "only a bracket": "{",
    "a comma too many": '{\n  "a": 1,\n}',
    "words": "these are words",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_object_over_several_lines_does_not_lose_those_around_it(name):
    others = [{"id": "a", "list": [{"x": 1}, {"y": [2]}]}, {"id": "b", "messages": chat("Q", "A")}]
    data = b"\n".join([written(others[0], 2), BROKEN[name].encode(), written(others[1], 2), written(others[0], 2)])
    assert parsed(data) == [others[0], "bad_json", others[1], others[0]]


def test_a_first_line_that_is_broken_is_not_taken_for_the_beginning_of_an_object():
    good = {"id": "a", "messages": chat("Q", "A")}
    for broken in (b'{"a": 1', b'{"a": "text', b'{"a": [1', b'{"a": 1} and more'):
        assert parsed(broken + b"\n" + jsonl(good, good)) == ["bad_json", good, good]


def test_an_object_over_several_lines_is_placed_by_its_first_line():
    values = cut(b"\n\n" + written({"a": 1}, 1) + b"\n\n" + written({"b": 2}, 1), [7])
    assert [value.number for value in values] == [3, 7]


ONE, TWO = chat("What is a reed?", "A tall grass."), chat("And a rush?", "It is not one.", "So what is it?", "A herb.")
THEIRS = [{"from": "human", "value": "What is a reed?"}, {"from": "gpt", "value": "A tall grass."}]
LISTS = {
    "one list on each line": (jsonl(ONE, TWO), [ONE, TWO]),
    "without a last line end": (jsonl(ONE, TWO).rstrip(), [ONE, TWO]),
    "each over several lines": (written(ONE, 2) + b"\n" + written(TWO, 2), [ONE, TWO]),
    "a list of lists": (written([ONE, TWO], None), [ONE, TWO]),
    "a list of lists over several lines": (written([ONE, TWO], 1), [ONE, TWO]),
    "one behind the other": (written(ONE, None) + written(TWO, None), [ONE, TWO]),
    "FastChat's names": (jsonl(THEIRS, THEIRS), [THEIRS, THEIRS]),
    "one conversation": (written(ONE, None), [ONE]),
    "a first one that is empty": (jsonl([], ONE, TWO), ["not_object", ONE, TWO]),
    "a broken one in between": (jsonl(ONE) + b'[{"role": "user"\n' + jsonl(TWO), [ONE, "bad_json", TWO]),
    "a torn last one": (jsonl(ONE, TWO)[:-20], [ONE, "torn_input"]),
    "after a record": (jsonl({"messages": ONE}, TWO), [ONE, TWO]),
}


@given(st.sampled_from(sorted(LISTS)), SIZES)
def test_a_list_of_turns_is_one_conversation(name, sizes):
    data, expected = LISTS[name]
    found = [one["messages"] if isinstance(one, dict) else one for one in parsed(data, sizes)]
    assert found == expected


ROWS = [
    {"messages": ONE},
    {"role": "user", "content": "What is a reed?", "conversation_id": "c1"},
    {"role": "a poet", "content": "about her", "prompt": "Write!", "completion": "I do."},
]


@pytest.mark.parametrize("row", ROWS)
def test_an_array_of_rows_is_not_taken_for_a_conversation(row):
    assert parsed(written([row, row], 1)) == [row, row]


def arrow(kind: str) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    table, sink = pyarrow.table({"a": [1]}), io.BytesIO()
    with (ipc.new_file if kind == "file" else ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name in ("a.docx", "b.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return sink.getvalue()


def zipped(*names: str) -> bytes:
    import zipfile

    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return sink.getvalue()


def parquet_twice() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist([{"prompt": "Q", "completion": "A"}]), sink)
    return sink.getvalue() * 2


FOREIGN = {
    "UTF-16 with a mark": (lambda: '{"prompt": "ä"}'.encode("utf-16"), "UTF-16 file; convert it: iconv"),
    "UTF-16, big end first": (lambda: '[{"prompt": "ä"}]'.encode("utf-16-be"), "UTF-16 file; convert it: iconv"),
    "UTF-16, little end first": (lambda: '{"prompt": "ä"}'.encode("utf-16-le"), "UTF-16 file; convert it: iconv"),
    "UTF-16 of a table": (lambda: "nr,question\n".encode("utf-16-le"), "UTF-16 file; convert it: iconv"),
    "an Arrow file": (lambda: arrow("file"), "Arrow or Feather file; write it as parquet"),
    "an Arrow stream": (lambda: arrow("stream"), "Arrow stream; write it as parquet"),
    "several parquet files": (parquet_twice, "several parquet files one after another; give each"),
    "a tar archive of other things": (tar, "a tar archive without JSON, JSONL or parquet in it (a.docx, b.png)"),
    "a PDF": (lambda: b"%PDF-1.7\n", "a PDF file"),
    "a zip file of other things": (lambda: zipped("a.docx", "b.png"), "without JSON, JSONL or parquet in it (a.docx, b.png)"),
    "a web page": (lambda: b"<!DOCTYPE html>\n<html>\n", "an HTML page, not JSON"),
    "a pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a table": (lambda: b"nr,question,answer\n1,a,b\n", "CSV with the header nr, question, answer: --columns user=question,assistant=answer"),
    "a table with tabs": (lambda: b"prompt\tresponse\na\tb\n", "TSV with the header prompt, response: --columns user=prompt,assistant=response"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named_with_what_to_do(vtools, name):
    make, said = FOREIGN[name]
    done = vtools("fetch", stdin=make())
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.errors.startswith("vtools fetch: stdin:1: ")
    assert said in done.errors
    assert done.errors.count("\n") == 1


def test_bytes_that_only_resemble_another_kind_are_read_as_lines():
    for start in (
        b"\xff\xfe\n",
        b"\xfe\xff\xfe\xff\n",
        b"BZh9 is bzip2\n",
        b"PAR\n",
        b"%PD\n",
        b"\0\0\0\x18ftyp\n",
        b"\0\0\n",
    ):
        assert parsed(start + jsonl({"a": 1})) == ["bad_json", {"a": 1}], start


DETAILS = {
    b'{"a": 1 "b": 2}': "not JSON at character 9: a comma or a closing bracket is missing",
    b'{"a" 1}': "not JSON at character 6: a colon is missing",
    b'{"a": }': "not JSON at character 7: a value is missing",
    b'{"a": 1} and more': "not JSON at character 10: more follows after the end of the value",
    b'{"a": "b\tc"}': "not JSON at character 9: a line end or another control character inside a text",
    b'{"a": "\\x"}': "not JSON at character 8: a backslash that escapes nothing",
    b'{"a": 1,}': "not JSON at character 9: a key in double quotes is missing",
    b"{'a': 1}": "not JSON at character 2: single quotes, as Python's str() writes them; write it with json.dumps",
    b'{"a": None}': "not JSON at character 7: None, as Python writes it; JSON has null",
    b"<p>words</p>": "not JSON: an HTML or XML page",
    b"words": "not JSON at character 1: a value is missing",
    b'{"a": [1': "not JSON: it breaks off before its end",
    b'{"a": %s}' % (b"1" * 5000): "a number of more than 4,300 digits",
}


@pytest.mark.parametrize("raw", DETAILS)
def test_what_is_wrong_with_a_line_is_said_in_plain_words_with_the_place(raw):
    reject = reader.parse(cut(jsonl({"a": 1}) + raw + b"\n", [99])[1])[0]
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.detail) == ("bad_json", DETAILS[raw])


FLAT = {
    "objects over several lines": lambda number: b'{\n "id": %d,\n "text": "%s"\n}\n' % (number, b"word " * 200),
    "lists of turns": lambda number: jsonl(chat(f"Q{number}", "word " * 200)),
    "rows of a table": lambda number: b'%d,"word\n' % number + b"word " * 200 + b'"\n',
}


@pytest.mark.parametrize("name", FLAT)
def test_memory_does_not_grow_with_the_number_of_records(name):
    names = Names({}, {"user": "q", "assistant": "a"})
    made = itertools.chain([b"q,a\n"] if "table" in name else [], map(FLAT[name], range(5_000)))
    tracemalloc.start()
    assert sum(1 for _ in streams.split(made, "file", names)) == 5_000  # 5 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
