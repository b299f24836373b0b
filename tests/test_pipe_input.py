"""The pipe contract: every packing is read, what is broken is named, and nothing that came in is lost."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest
import zstandard
from chats import jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from piping import record


def test_a_line_that_is_not_json_stops_the_run_after_everything_before_it(vtools, tool):
    done = vtools(*tool, stdin=jsonl(record(1), record(2)) + b"not json\n" + jsonl(record(3)))
    assert done.returncode == 1
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    assert done.errors.startswith(f"vtools {tool[0]}: stdin:3: ")
    assert done.errors.count("\n") == 1


def test_with_rejects_a_bad_line_is_saved_verbatim_and_the_run_goes_on(vtools, tool, tmp_path):
    bad = b'{"id": "x", "messages": [\xff]}'
    done = vtools(
        *tool,
        "--rejects",
        "rejects.jsonl",
        "--stats",
        "stats.json",
        stdin=jsonl(record(1)) + bad + b"\n" + jsonl(record(2)),
    )
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    (reject,) = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert (reject["stage"], reject["reason"], reject["line"], reject["source"]) == (tool[0], "bad_json", 2, "stdin")
    assert base64.b64decode(reject["raw_b64"]) == bad
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["in"], stats["out"], stats["rejected"], stats["reasons"]) == (3, 2, 1, {"bad_json": 1})


NOT_OBJECTS = [b"42", b"null", b'"text"', b"[1, 2]"]


@pytest.mark.parametrize("raw", NOT_OBJECTS)
def test_a_json_value_that_is_no_object_is_named_as_such(vtools, tool, tmp_path, raw):
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=jsonl(record(1)) + raw + b"\n" + jsonl(record(2)))
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["reason"] == "not_object"


def test_blank_lines_bom_crlf_and_a_missing_last_newline_are_fine(vtools, tool):
    bom = b"\xef\xbb\xbf"
    data = (
        bom
        + jsonl(record(1)).replace(b"\n", b"\r\n")
        + b"\r\n\n  \n"
        + bom
        + jsonl(record(2))
        + jsonl(record(3)).rstrip()
    )
    done = vtools(*tool, stdin=data)
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]


def test_lone_surrogates_nan_and_huge_integers_are_repaired_or_kept(vtools, tool):
    odd = (
        json.dumps(record(1))[:-1]
        + ', "score": NaN, "big": 123456789012345678901234567890, "small": -9223372036854775809}'
    )
    odd = odd.replace("Answer", "Answer \\ud83d and \\ud83d\\ude00")
    done = vtools(*tool, stdin=odd + "\n")
    assert done.returncode == 0
    (item,) = done.records
    assert item["messages"][1]["content"].startswith("Answer \ufffd and \U0001f600")
    assert item["score"] is None
    assert (item["big"], item["small"]) == (123456789012345678901234567890, -9223372036854775809)
    assert "repaired 1" in done.errors


@pytest.mark.timeout(700)
@pytest.mark.parametrize("megabytes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_very_long_line_goes_through(vtools, tool, megabytes):
    long = record(1)
    long["messages"][1]["content"] = "many words " * (megabytes * 100_000)
    done = vtools(*tool, stdin=jsonl(long, record(2)), timeout=600)
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    assert done.records[0]["messages"][1]["content"].strip() == long["messages"][1]["content"].strip()


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def parquet(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in data.splitlines()]), sink)
    return sink.getvalue()


def array(data: bytes) -> bytes:
    return json.dumps([json.loads(line) for line in data.splitlines()], indent=1).encode()


def zipped(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def in_tar(mode: str = "w", **members: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return sink.getvalue()


def pretty(data: bytes) -> bytes:
    return b"".join(json.dumps(json.loads(line), indent=2).encode() + b"\n" for line in data.splitlines())


def halves(data: bytes) -> tuple[bytes, bytes]:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:7]), b"".join(lines[7:])


FORMS = {
    "bzip2": bz2.compress,
    "two bzip2 streams": lambda data: bz2.compress(data[:100]) + bz2.compress(data[100:]),
    "xz": lzma.compress,
    "zip": lambda data: zipped(**{"whatever it is called": data}),
    "zip of several": lambda data: zipped(
        **{
            "__MACOSX/._a.json": b"\0\5\x16\7",
            "a.json": array(halves(data)[0]),
            "b/": b"",
            "b/c.jsonl.gz": gzip.compress(halves(data)[1]),
            "about.txt": b"what is no data",
            ".DS_Store": b"\0",
        }
    ),
    "tar": lambda data: in_tar(**{"a/folder/of/its.own/data.jsonl": data}),
    "tar.xz of several": lambda data: in_tar(
        "w:xz", **{"about.txt": b"x", "a.json": array(halves(data)[0]), "c.jsonl.gz": gzip.compress(halves(data)[1])}
    ),
    "gzip of parquet": lambda data: gzip.compress(parquet(data)),
    "objects over several lines": pretty,
    "gzip": gzip.compress,
    "two gzip members": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "zstd": zst,
    "parquet": parquet,
    "array": array,
    "gzip of an array": lambda data: gzip.compress(array(data)),
    "two arrays": lambda data: array(data[: data.index(b"\n") + 1]) + b"\n" + array(data[data.index(b"\n") + 1 :]),
    "compact array with a BOM": lambda data: b"\xef\xbb\xbf [" + data.strip().replace(b"\n", b",") + b"]",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["stdin", "file"])
def test_every_packing_is_read_by_its_bytes_not_by_its_name(vtools, tool, tmp_path, form, by):
    data = jsonl(*map(record, range(20)))
    packed = FORMS[form](data)
    (tmp_path / "input").write_bytes(packed)
    done = vtools(*tool, "input") if by == "file" else vtools(*tool, "-", stdin=packed)
    assert done.returncode == 0, done.errors
    assert [item["id"] for item in done.records] == [f"c{number}" for number in range(20)]


def test_an_array_element_that_is_broken_does_not_lose_the_others(vtools, tool, tmp_path):
    items = [
        json.dumps(record(1)),
        '{"id": "x", nonsense: "a ] b"}',
        json.dumps(record(2)),
        "[[1], {}]",
        json.dumps(record(3)),
    ]
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin="[" + ",\n".join(items) + "]")
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(item["reason"], item["line"]) for item in rejects] == [("bad_json", 2), ("not_object", 4)]


def test_what_follows_an_array_is_read_as_lines_and_not_lost(vtools, tool, tmp_path):
    data = b"[" + jsonl(record(1)).strip() + b"]\n" + jsonl(record(2)) + b"not json\n" + jsonl(record(3))
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=data)
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["reason"] == "bad_json"
    assert "4 in, 3 out, 1 rejected" in done.errors


TORN = {
    "array": lambda data: array(data)[:-120],
    "array without its bracket": lambda data: array(data)[:-1],
    "line": lambda data: data[:-40],
    "gzip": lambda data: gzip.compress(data)[:-3000],
    "zstd": lambda data: zst(data)[:-50_000],
}


@pytest.mark.parametrize("form", TORN)
def test_a_torn_input_gives_every_whole_record_then_says_where_it_tore(vtools, tool, tmp_path, form):
    import random

    noise = random.Random(1)
    made = [record(number) for number in range(300)]
    for item in made:
        item["noise"] = noise.randbytes(900).hex()  # several compressed blocks
    data = TORN[form](jsonl(*made))
    plain = vtools(*tool, stdin=data)
    saved = vtools(*tool, "--rejects", "rejects.jsonl", stdin=data)
    assert (plain.returncode, saved.returncode) == (1, 0)
    assert plain.stdout == saved.stdout
    ids = [item["id"] for item in saved.records]
    assert ids == [f"c{number}" for number in range(len(ids))]
    assert len(ids) == 300 if form == "array without its bracket" else 100 < len(ids) < 300
    assert f"stdin:{len(ids) + 1}: " in plain.errors
    (reject,) = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert (reject["reason"], reject["line"]) == ("torn_input", len(ids) + 1)
    assert f"{len(ids) + 1} in, {len(ids)} out, 1 rejected" in saved.errors


@pytest.mark.parametrize(("kept", "whole"), [(2048, 20), (700, 4), (100, 0)])
def test_of_a_torn_tar_archive_every_whole_record_is_read_before_it_is_said(vtools, kept, whole):
    data = b"".join(jsonl({"id": str(number), "prompt": "Q", "completion": "A"}) for number in range(10))
    done = vtools("fetch", "--rejects", "r", stdin=in_tar(**{"1.jsonl": data, "2.jsonl": data})[:kept])
    assert (done.returncode, len(done.records)) == (0 if whole else 1, whole), done.errors
    assert (whole == 0) or "torn_input" in done.errors


def test_records_of_a_wholly_unknown_shape_are_an_error_not_an_empty_file(vtools, tool):
    done = vtools(*tool, stdin=jsonl({"a": 1}, {"b": 2}))
    assert done.returncode == 1
    assert "stdin:1: bad_schema" in done.errors


UNREADABLE = ("bad_json", "not_object", "torn_input", "bad_schema", "unknown_role")
JUNK = st.one_of(
    st.builds(lambda number: jsonl(record(number)), st.integers(0, 10**6)),
    st.sampled_from([b"null\n", b"{}\n", b"\n", b"{", b'{"messages": null}\n', b'{"conversations": []}\n', b"\xff\xfe\n", b"[]\n"]),
    st.binary(max_size=20).filter(lambda raw: not raw.startswith((b"\x1f\x8b", b"PAR1"))).map(lambda raw: raw + b"\n"),
    st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["messages", "id", "from", "value", "role", "content", "items"]), inner, max_size=4), max_leaves=8).map(lambda value: json.dumps(value).encode() + b"\n"),
)  # fmt: skip


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(chunks=st.lists(JUNK, max_size=40))
def test_in_equals_out_plus_rejected_for_any_input(vtools, tool, tmp_path, chunks):
    done = vtools(*tool, "--rejects", "rejects.jsonl", "--stats", "stats.json", stdin=b"".join(chunks))
    stats = json.loads((tmp_path / "stats.json").read_text())
    nothing_readable = stats["in"] == sum(stats["reasons"].get(reason, 0) for reason in UNREADABLE) > 0
    assert done.returncode == nothing_readable, done.errors
    rejects = (tmp_path / "rejects.jsonl").read_bytes().splitlines()
    assert stats["in"] == stats["out"] + stats["rejected"]
    assert stats["rejected"] == len(rejects) == sum(stats["reasons"].values())
    if tool[0] != "split":
        assert stats["out"] == len(done.records)
