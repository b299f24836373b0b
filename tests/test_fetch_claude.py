"""fetch: Claude's export, and what it holds beside the messages."""

from __future__ import annotations

import io
import json
import zipfile

from chats import jsonl
from source_files import TALK, claude, fetched, said_by


def one(folder, *messages, **keys) -> dict:
    (record,) = fetched(folder, json.dumps([claude(*messages, **keys)]).encode())
    return record


def test_of_an_export_the_conversations_are_read_and_nothing_else(tmp_path, vtools):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("users.json", '[{"uuid": "u", "email_address": "a@example.org"}]')
        archive.writestr("projects.json", '[{"uuid": "p", "name": "Reeds"}]')
        archive.writestr("conversations.json", json.dumps([claude()]))
    done = vtools("fetch", stdin=sink.getvalue())
    assert done.errors == "vtools fetch: 1 in, 1 out, 0 rejected\n"
    assert done.records[0]["source"] == {
        "kind": "claude", "uri": "stdin", "title": "Reeds",
        "created_at": "2023-11-14T22:13:20Z", "updated_at": "2023-11-15T22:13:20Z",
    }  # fmt: skip


def test_the_path_ends_in_the_newest_message_and_every_branch_can_be_had(tmp_path):
    assert [message["content"] for message in one(tmp_path)["messages"]] == TALK
    chosen = one(tmp_path, current_leaf_message_uuid="old")
    assert [message["content"] for message in chosen["messages"]] == [TALK[0], "An animal."]
    records = fetched(tmp_path, jsonl(claude()), branches="all")
    assert {record["id"]: len(record["messages"]) for record in records} == {"c1:old": 2, "c1:a2": 4}


def test_messages_of_older_exports_which_name_no_parents_are_in_their_order(tmp_path):
    messages = [{"uuid": text, "sender": ("human", "assistant")[place % 2], "text": text} for place, text in enumerate(TALK)]  # fmt: skip
    assert [message["content"] for message in one(tmp_path, *messages)["messages"]] == TALK


def test_thoughts_are_apart_and_tools_and_attachments_are_named(tmp_path):
    record = one(
        tmp_path,
        said_by("human", "q", None, "Q", attachments=[{"file_name": "reed.txt", "extracted_content": "..."}], files=[{"file_name": "reed.png"}]),
        said_by("assistant", "a", "q", "A", {"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "name": "web_search", "input": {}}, {"type": "tool_result", "content": []}),
    )  # fmt: skip
    time = "2023-11-14T22:13:20Z"
    assert record["messages"] == [
        {"role": "user", "content": "Q", "created_at": time, "attachments": ["reed.txt", "reed.png"]},
        {"role": "assistant", "content": "A", "created_at": time, "reasoning_content": "Hm.", "tools": ["web_search"]},
    ]
