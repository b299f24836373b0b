"""fetch: what the programs on people's own machines keep, and the trees of OpenAssistant."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest
import running
import source_files
from chats import jsonl
from source_files import TALK, fetched, lm_studio, oasst_rows, open_webui


def test_the_logs_of_llm_give_conversations_and_single_prompts(tmp_path):
    alone, whole = fetched(tmp_path, source_files.llm(tmp_path))
    assert (alone["id"], alone["messages"][1]["content"]) == ("r0", "Yes.")
    assert (whole["id"], whole["model"], whole["source"]["title"]) == ("c1", "gpt-4", "Reeds")
    assert whole["source"]["updated_at"] == "2023-11-15T22:13:21Z"
    assert whole["messages"][0] == {"role": "system", "content": "Be brief."}
    question, answer = whole["messages"][-2:]
    assert (question["content"], question["attachments"]) == ("Of plants:\nWhere does it grow?", ["/tmp/reed.png"])
    assert (answer["content"], answer["tools"]) == (TALK[3], ["atlas"])


def test_logs_that_another_process_is_writing_are_read_with_their_newest_rows(tmp_path):
    path = tmp_path / "logs.db"
    path.write_bytes(source_files.llm(tmp_path))
    with contextlib.closing(sqlite3.connect(path)) as open_still:
        open_still.execute("PRAGMA journal_mode = WAL")
        open_still.execute("INSERT INTO responses VALUES ('r9', 'm', 'New?', NULL, NULL, 'Yes.', NULL, NULL)")
        open_still.commit()
        assert len(running.good("fetch", path)) == 3


@pytest.mark.parametrize(("script", "why"), [
    ("CREATE TABLE books (id TEXT)", "an SQLite database of no kind that is read (its tables: books)"),
    ("CREATE VIEW responses AS SELECT 1 AS id, 2 AS prompt, 3 AS response, 4 AS conversation_id", "(its tables: none)"),
])  # fmt: skip
def test_another_database_is_refused_by_its_tables(tmp_path, script, why):
    assert why in running.bad("fetch", stdin=source_files.database(tmp_path, script))


def test_open_webui_gives_the_current_path_thoughts_apart(tmp_path):
    (record,) = fetched(tmp_path, jsonl(open_webui()))
    assert record["model"] == "qwen"
    assert record["source"]["updated_at"] == "2023-11-15T22:13:20Z"
    assert record["messages"][2:] == [
        {"role": "user", "content": TALK[2], "attachments": ["map.pdf"]},
        {"role": "assistant", "content": TALK[3], "reasoning_content": "Water?\nYes.", "tools": ["atlas"]},
    ]
    assert [each["id"] for each in fetched(tmp_path, jsonl(open_webui()), branches="all")] == ["c1:old", "c1:a2"]


def test_lm_studio_gives_the_selected_versions(tmp_path):
    (record,) = fetched(tmp_path, json.dumps(lm_studio(), indent=2).encode())
    assert record["messages"][1] == {"role": "assistant", "content": TALK[1], "reasoning_content": "Hm.", "tools": ["atlas"]}  # fmt: skip
    assert (record["model"], record["source"]["created_at"]) == ("qwen", "2023-11-14T22:13:20Z")


def test_a_tree_gives_its_best_path_or_each_leaf(tmp_path):
    for data in (jsonl(source_files.TREE), jsonl(*oasst_rows())):
        (record,) = fetched(tmp_path, data)
        assert (record["id"], record["lang"], record["source"]["created_at"]) == ("q1", "en", "2023-01-31T10:00:00Z")
        leaves = fetched(tmp_path, data, branches="all")
        assert sorted((each["id"], len(each["messages"])) for each in leaves) == [("q1:a2", 4), ("q1:worse", 2)]


def test_rows_of_several_trees_are_one_record_each_and_what_lacks_its_beginning_is_counted(tmp_path):
    rows = oasst_rows()
    other = [{**row, "message_tree_id": "other"} for row in rows]
    data = jsonl(*rows, *other, {"prompt": "Q", "completion": "A"}, rows[1])
    records = fetched(tmp_path, data, stats=str(tmp_path / "stats"))
    assert [record["id"] for record in records][:2] == ["q1", "other"]
    counts = json.loads((tmp_path / "stats").read_text())
    assert (counts["in"], counts["out"], counts["reasons"]) == (4, 3, {"bad_schema": 1})


def test_of_wildchat_nothing_that_identifies_a_user_is_kept(tmp_path):
    (record,) = fetched(tmp_path, jsonl(source_files.wildchat()))
    assert record["messages"] == source_files.chat(*TALK)
    assert not {"hashed_ip", "header", "state", "country"} & set(record)
    assert (record["id"], record["model"], record["source"]["created_at"]) == ("c1", "gpt-4", "2023-11-14T22:13:20Z")


@pytest.mark.parametrize("row", [
    {"system": "SYSTEM: S", "chat": "USER: Q\n\nASSISTANT: <functioncall> {} <|endoftext|>\n\nFUNCTION RESPONSE: {}"},
    {"id": 0, "query": "Q", "answers": '[{"name": "f", "arguments": {}}]', "tools": "[]"},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "tool", "value": "{}"}]},
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
])  # fmt: skip
def test_a_conversation_with_a_call_of_a_function_is_refused_as_such(tmp_path, row):
    fetched(tmp_path, jsonl(row, {"prompt": "Q", "completion": "A"}), stats=str(tmp_path / "stats"))
    assert json.loads((tmp_path / "stats").read_text())["reasons"] == {"tool": 1}


def test_an_entry_of_a_list_of_sharegpt_is_refused_with_what_to_do():
    row = {"id": "2wtLdZm", "title": "Reeds", "saves": 1, "views": 3, "createdAt": "2023-03-11T00:00:00Z"}
    assert "fetch the page of its id" in running.bad("fetch", stdin=jsonl(row))
