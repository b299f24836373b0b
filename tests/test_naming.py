"""--columns and --role: names that are not ours, in tables of every kind, and what is wrong with them."""

from __future__ import annotations

import csv
import io
import json

import pytest
from chats import chat, jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from running import bad
from test_streams import SIZES

from vtools.process import UsageFailure
from vtools.records import conversation, naming, streams
from vtools.records import jsonl as reader
from vtools.records.jsonl import Reject
from vtools.records.naming import Names

COLUMNS = Names({}, {"user": "question", "assistant": "answer"})


def cut(data: bytes, names: Names = COLUMNS, sizes: tuple[int, ...] = (1 << 16,)) -> list[streams.Value]:
    chunks, position, turn = [], 0, 0
    while position < len(data):
        chunks.append(data[position : position + sizes[turn % len(sizes)]])
        position, turn = position + len(chunks[-1]), turn + 1
    return list(streams.split(chunks, "file", names))


def rows(data: bytes, **options) -> list[object]:
    """Each row as an object, or what is said about it."""
    found = [reader.parse(value)[0] for value in cut(data, **options)]
    return [one.detail if isinstance(one, Reject) else one for one in found]


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(['a "b"', "x,y", "x\ty", "\n\n", "\r\n", '"', " ", "{", "\ufeff"])  # fmt: skip
LINES = st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6)


@settings(max_examples=200)
@given(LINES, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]), st.booleans(), SIZES)
def test_a_table_gives_the_cells_that_were_written_whatever_is_in_them(lines, separator, end, marked, sizes):
    lines = [[cell.replace("\r", "") for cell in line] for line in lines]
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["nr", "question", "answer"], *lines])
    data = "\ufeff" * marked + sink.getvalue()
    found = rows(data.encode(), sizes=tuple(sizes))
    assert found == [dict(zip(("nr", "question", "answer"), line, strict=True)) for line in lines]


def test_a_row_is_placed_by_its_first_line():
    data = b'question,answer\na,"b\n\nc"\n\nd,e\n'
    assert [value.number for value in cut(data)] == [2, 6]


def test_a_broken_row_is_named_and_does_not_lose_the_others():
    data = b'nr,question,answer\n1,a,b\n2,a "b" c,d\n3,"a" b,c\n4,a,b,c\n5,a\n6,\xe9,b\n7,a,b,,\n8,"a,b\n'
    assert rows(data) == [
        {"nr": "1", "question": "a", "answer": "b"},
        {"nr": "2", "question": 'a "b" c', "answer": "d"},
        "a quote in this row is not closed, or stands inside a cell",
        "4 cells, and 3 in the header; cells with a separator in them need quotes",
        {"nr": "5", "question": "a", "answer": None},
        "not UTF-8; convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE",
        {"nr": "7", "question": "a", "answer": "b"},
        "a quote in this row is not closed, or stands inside a cell",
    ]


def test_a_long_cell_is_read_whole():
    assert rows(b"question,answer\nQ," + b"long " * 100_000 + b"\n")[0]["answer"] == "long " * 100_000


HEADERS = {
    b"nr,question,reply\n": "the column answer is not in the header: nr, question, reply",
    b"question,answer,answer\n": "the column answer is twice in the header: question, answer, answer",
    b"Question\tAnswer\n": "the column question is not in the header: Question, Answer",
    b"question,answer\ra,b\r": "a table with the line ends of old Macs; convert it: tr '\\r' '\\n' < FILE",
    b"<a>,<b>\n": "the column question is not in the header: <a>, <b>",
    b"a single text\n": "the column question is not in the header: a single text",
    b"<html>\n": "an HTML page, not JSON; was a page saved instead of the file?",
}


@pytest.mark.parametrize("data", HEADERS)
def test_a_table_without_a_named_column_says_which_it_has(data):
    assert rows(data + b"a,b,c\n")[0] == HEADERS[data]


def test_a_torn_table_gives_its_whole_rows_and_says_that_it_tore():
    import gzip
    import random

    noise = random.Random(1)
    lines = [f"Q{number},{noise.randbytes(300).hex()}\n" for number in range(300)]
    data = gzip.compress(("question,answer\n" + "".join(lines)).encode())
    *whole, last = cut(data[: len(data) // 2])
    assert 100 < len(whole) < 200
    assert [json.loads(value.raw)["question"] for value in whole] == [f"Q{number}" for number in range(len(whole))]
    assert last.torn == "the gzip data ends early"


def read(value: dict, roles: tuple[str, ...] = (), columns: str | None = None) -> dict:
    return conversation.read(value, naming.parse(roles, columns))


def test_columns_become_a_conversation_and_the_others_stay_beside_it():
    row = {"nr": 7, "hint": "Be brief.", "frage": "What is a reed?", "antwort": "A grass.", "topic": "plants"}
    record = read(row, columns="assistant=antwort, user=frage,system=hint,id=nr")
    assert record == {"id": "7", "messages": chat("What is a reed?", "A grass.", system="Be brief."), "topic": "plants"}
    for empty in ("", None):
        assert read({**row, "hint": empty}, columns="user=frage,assistant=antwort,system=hint")["messages"] == chat("What is a reed?", "A grass.")  # fmt: skip
    dialogue = {"dialogue": [{"from": "human", "value": "Q"}, {"from": "helper", "value": "A"}], "messages": None}
    assert read(dialogue, ["helper=assistant"], "messages=dialogue")["messages"] == chat("Q", "A")


@pytest.mark.parametrize(("row", "said"), [
    ({"question": "Q", "reply": "A"}, "the column answer is not there (question, reply)"),
    ({"question": "Q", "answer": None}, "the column answer is not there (question, answer)"),
    ({"question": ["Q"], "answer": "A"}, "the column question is a list, not a text (question, answer)"),
    ({"question": "Q", "answer": 3}, "the column answer is a number, not a text (question, answer)"),
])  # fmt: skip
def test_a_column_that_holds_no_text_is_named(row, said):
    with pytest.raises(Reject) as caught:
        read(row, columns="user=question,assistant=answer")
    assert (caught.value.reason, caught.value.detail) == ("bad_schema", said)


def test_a_role_is_read_as_ours_in_any_case_and_in_any_place():
    turns = [{"from": "Narrator", "value": "S"}, {"from": "Alice", "value": "Q"}, {"from": "THE HELPER", "value": "A"}]
    roles = ["narrator=system", "alice=user", "the helper=assistant"]
    assert read({"conversations": turns}, roles)["messages"] == chat("Q", "A", system="S")
    swapped = [{"role": "user", "content": "A"}, {"role": "model", "content": "Q"}]
    assert read({"messages": swapped}, ["user=assistant", "model=user"])["messages"][0]["role"] == "assistant"


@pytest.mark.parametrize(("roles", "columns", "said"), [
    (["helper"], None, "--role helper: write THEIRS=OURS"),
    (["=user"], None, "--role =user: write THEIRS=OURS"),
    (["helper="], None, "nothing is no role; use system, user or assistant"),
    (["helper=helpers"], None, "helpers is no role; use system, user or assistant"),
    (["a=user", "A=assistant"], None, "a is user already"),
    ([], "question", "write OURS=COLUMN"),
    ([], "user=", "write OURS=COLUMN"),
    ([], "", "write OURS=COLUMN"),
    ([], "human=a,assistant=b", "human is none of system, user, assistant, id, messages"),
    ([], "user=a,user=b,assistant=c", "user is given twice"),
    ([], "user=a,assistant=a", "the column a is given twice"),
    ([], "user=a", "name user and assistant, or messages alone"),
    ([], "user=a,assistant=b,messages=c", "name user and assistant, or messages alone"),
    ([], "id=a", "name user and assistant, or messages alone"),
])  # fmt: skip
def test_a_wrong_name_is_a_usage_error_that_says_what_is_wrong(roles, columns, said):
    with pytest.raises(UsageFailure) as caught:
        naming.parse(roles, columns)
    assert said in str(caught.value)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_filter_reads_tables_and_roles_by_their_names(vtools, eot, tmp_path, jobs):
    (tmp_path / "faq.tsv").write_text(
        "nr\tquestion\tanswer\nA 1\tWhat is a reed, please?\tA tall grass, and a pen once.\n"
    )
    columns = ["faq.tsv", "--columns", "user=question,assistant=answer,id=nr"]
    turns = [
        {"role": "asker", "content": "What is a reed, please?"},
        {"role": "sage", "content": "A tall grass, and a pen once."},
    ]
    roles = ["--role", "asker=user", "--role", "Sage=assistant"]
    for tool in (
        ["fetch"],
        ["clean", "-j", jobs],
        ["split", "--tokenizer", eot, "-j", jobs],
        ["clean", "--dedupe", "longest"],
    ):
        for names, data in ((columns, b""), (roles, jsonl({"id": "A 1", "messages": turns}))):
            (record,) = vtools(*tool, *names, stdin=data).records
            assert record["messages"] == chat("What is a reed, please?", "A tall grass, and a pen once.")
            assert record["id"] == "A 1"
    assert vtools("stats", *columns).records[0]["roles"] == {"user": 1, "assistant": 1}
    assert vtools("stats", *roles, stdin=jsonl({"messages": turns})).records[0]["messages"] == 2


def test_a_preset_takes_no_names(eot):
    for tool in (["clean"], ["split", "--tokenizer", eot]):
        said = bad(*tool, "--preset", "vicuna", "--role", "a=user", code=2)
        assert "leave out" in said
