"""fetch: folders and globs stand for the data files in them, in the order of their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import jsonl
from piping import record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data of several kinds and other files, some below."""
    made = tmp_path / "data"
    (made / "b" / "c").mkdir(parents=True)
    (made / ".git").mkdir()
    (made / "b.jsonl").write_bytes(jsonl(record(3)))
    (made / "a.JSON").write_bytes(json.dumps([record(1), record(2)]).encode())
    (made / "b" / "c" / "d.ndjson").write_bytes(jsonl(record(5)))
    (made / "b" / "a.json").write_bytes(json.dumps(record(4), indent=1).encode())
    for other in (".hidden.jsonl", ".git/a.json", "README.md", "LICENSE", "faq.csv"):
        (made / other).write_text("question,answer\nWhat is a reed?,A grass.\n")
    return made


def test_a_folder_gives_the_records_of_its_data_files_and_says_what_it_skipped(vtools, folder):
    done = vtools("fetch", "data")
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3", "c4", "c5"]
    assert done.records[3]["source"]["uri"] == "data/b/a.json"
    assert "vtools fetch: data: 4 files; skipped 4: .hidden.jsonl, LICENSE, README.md, faq.csv" in done.errors  # fmt: skip
    assert vtools("fetch", "data", "-q").errors == ""


def test_tables_in_a_folder_are_read_if_their_columns_are_named(vtools, folder):
    for name in ("a.JSON", "b.jsonl"):
        (folder / name).unlink()
    (folder / "b" / "a.json").write_bytes(jsonl({"question": "Q", "answer": "A"}))
    (folder / "b" / "c" / "d.ndjson").write_bytes(b"")
    done = vtools("fetch", folder, "--columns", "user=question,assistant=answer")
    assert [item["messages"][0]["content"] for item in done.records] == ["Q", "What is a reed?"]


def test_a_glob_that_the_shell_did_not_expand_is_expanded(vtools, folder):
    done = vtools("fetch", "data/*.[jJ]*", "data/**/d.*")
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3", "c5"]
    assert [item["id"] for item in vtools("fetch", "da?a/b").records] == ["c4", "c5"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(vtools, tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(jsonl(record(7)))
    (tmp_path / "a1.jsonl").write_bytes(jsonl(record(8)))
    assert [item["id"] for item in vtools("fetch", "a[1].jsonl").records] == ["c7"]


@pytest.mark.parametrize(("given", "said"), [
    ("no*.jsonl", "no*.jsonl: no file matches"),
    ("empty", "empty: no JSON, JSONL or parquet file in it (it is empty)"),
    ("words", "words: no JSON, JSONL or parquet file in it (a.txt, b.csv); CSV and TSV need `vtools fetch --columns`"),
    ("missing.jsonl", "missing.jsonl: No such file or directory"),
])  # fmt: skip
def test_what_gives_no_file_is_an_error_by_name(vtools, tmp_path, given, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    for name in ("a.txt", "b.csv"):
        (tmp_path / "words" / name).write_text("words")
    done = vtools("fetch", given)
    assert (done.returncode, done.stdout, done.errors) == (1, b"", f"vtools fetch: {said}\n")


def test_the_output_of_an_earlier_run_in_the_same_folder_is_not_read_again(vtools, folder):
    for _ in range(2):
        assert vtools("fetch", "data", "-o", "data/all.jsonl", "--rejects", "data/bad.jsonl").returncode == 0
        assert (folder / "all.jsonl").read_bytes().count(b"\n") == 5
