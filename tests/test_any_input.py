"""Whatever comes in, what goes out is valid, all of it is counted, and no run ends in an error that nobody expected."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rows import as_parquet
from test_streams import VALUES

from vtools.clean import clean
from vtools.fetch import fetch
from vtools.process import Failure
from vtools.records import unpacking
from vtools.split import split

MAGIC = [*unpacking.MAGIC, b"\xff\xfe{\0", b"{\0", b"BZh91AY&SY", b"a,b\n", b"<html>", b"[", b"{\n"]
BYTES = st.binary(max_size=80) | st.tuples(st.sampled_from(MAGIC), st.binary(max_size=60)).map(b"".join)
KEYS = st.sampled_from("""id messages conversations conversation items data instruction input output prompt completion response question
    answer context history system system_prompt chosen rejected chosen_messages label score source tools images text mapping
    segment vtools lang plugins weight uuid""".split())  # fmt: skip
TEXTS = st.text(max_size=8) | st.sampled_from(["A question, long enough?", "<p>An answer, <b>long</b> enough.</p>", "<image>", "[]", '[{"role":"user","content":"x"}]'])  # fmt: skip
ROLES = (
    st.sampled_from("user assistant system human gpt tool function developer helper Human thinking".split()) | VALUES
)
PARTS = st.lists(st.dictionaries(st.sampled_from(["type", "text", "value", "image_url", "content"]), TEXTS | VALUES, max_size=3), max_size=3)  # fmt: skip
TURNS = st.fixed_dictionaries({}, optional={
    "role": ROLES, "from": ROLES, "content": TEXTS | PARTS | VALUES, "value": TEXTS | VALUES, "text": TEXTS,
    "weight": VALUES, "name": VALUES, "tool_calls": VALUES, "type": TEXTS, "id": VALUES,
})  # fmt: skip
TALK = st.lists(TURNS, max_size=5)
RECORDS = st.dictionaries(KEYS, TALK | TEXTS | VALUES | st.lists(TEXTS, max_size=3) | st.lists(TALK, max_size=2), max_size=6)  # fmt: skip
LINES = st.lists(RECORDS | VALUES | TALK, max_size=6).map(lambda values: b"".join(json.dumps(one).encode() + b"\n" for one in values))  # fmt: skip
whatever = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["fetch", "clean", "split"])
def tool(request, eot):
    return {"fetch": fetch, "clean": clean, "split": functools.partial(split, tokenizer=eot)}[request.param]


def check(tool, folder: Path, data: bytes, **options) -> None:
    """Run the filter on these bytes: it ends well or in a Failure, with all records counted and only valid ones out."""
    (folder / "in").write_bytes(data)
    for name in ("out", "stats", "rejects"):
        (folder / name).unlink(missing_ok=True)
    paths = {"out": str(folder / "out"), "rejects": str(folder / "rejects"), "stats": str(folder / "stats")}
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            tool([str(folder / "in")], **paths, **options)
        except (Failure, RecursionError):
            assert not (folder / "out").exists()
            return
    stats = json.loads((folder / "stats").read_bytes())
    rows = [json.loads(line) for line in (folder / "out").read_bytes().splitlines()]
    assert stats["in"] == stats["out"] + stats["rejected"]
    assert stats["rejected"] == len((folder / "rejects").read_bytes().splitlines())
    assert stats.get("segments", stats["out"]) == len(rows)
    if "segments" in stats:
        assert stats["turns_in"] == stats["turns_out"] + stats["turns_dropped"]
    for row in rows:
        assert type(row["id"]) is str
        for message in row["messages"]:
            assert message["role"] in ("system", "user", "assistant")
            assert type(message["content"]) is str


@whatever
@given(BYTES)
@example(b"PK\3\4")
@example(b"\xff\xfe{\0")
def test_no_bytes_end_a_filter_in_an_unexpected_error(tool, tmp_path, data):
    check(tool, tmp_path, data)
    check(tool, tmp_path, data, columns="user=a,assistant=b")


@whatever
@given(LINES)
def test_no_json_ends_a_filter_in_an_unexpected_error_or_comes_out_invalid(tool, tmp_path, data):
    check(tool, tmp_path, data)


@pytest.mark.slow
@whatever
@given(LINES, st.sampled_from(["user=prompt,assistant=completion", "user=question,assistant=answer,system=system,id=id", "messages=data"]))  # fmt: skip
def test_no_json_ends_a_filter_badly_if_columns_and_roles_are_named(tool, tmp_path, data, columns):
    check(tool, tmp_path, data, columns=columns, role=["helper=assistant", "tool=user"])


@pytest.mark.slow
@whatever
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_no_row_ends_a_filter_in_an_unexpected_error_or_comes_out_invalid(tool, tmp_path, records):
    try:
        data = as_parquet(*records)
    except Exception:  # values that are of no one type, or of none that a table can have
        return
    check(tool, tmp_path, data)
