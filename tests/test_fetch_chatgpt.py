"""fetch: ChatGPT's export, its share pages, and what they hold beside the messages."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import running
from chats import jsonl
from source_files import SAVED_PAGE, TALK, chatgpt, fetched, next_page, node, router_page, said, shared


def one(folder, *nodes, **keys) -> dict:
    (record,) = fetched(folder, json.dumps([chatgpt(*nodes, **keys)]).encode())
    return record


def export(*conversations: dict) -> bytes:
    """The ZIP that ChatGPT sends."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("chat.html", "<html>all of it once more</html>")
        archive.writestr("user.json", '{"id": "u", "email": "a@example.org"}')
        archive.writestr("message_feedback.json", '[{"id": "f", "rating": "thumbs_up"}]')
        archive.writestr("conversations.json", json.dumps(conversations))
    return sink.getvalue()


def test_of_an_export_the_conversations_are_read_and_nothing_else(tmp_path, vtools):
    (tmp_path / "export.zip").write_bytes(export(chatgpt(), chatgpt(conversation_id="c2")))
    done = vtools("fetch", "export.zip", "--license", "mine", "--license", "claude=other")
    assert done.errors == "vtools fetch: 2 in, 2 out, 0 rejected\n"
    assert [record["id"] for record in done.records] == ["c1", "c2"]
    assert done.records[0]["source"] == {
        "kind": "chatgpt", "uri": "export.zip", "license": "mine", "title": "Reeds",
        "created_at": "2023-11-14T22:13:20Z", "updated_at": "2023-11-15T22:13:20Z",
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "export.zip") as archive:
        archive.extractall(tmp_path / "export")
    assert [record["id"] for record in vtools("fetch", "export").records] == ["c1", "c2"]


def test_a_zip_that_is_no_export_gives_all_of_its_files(tmp_path):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("conversations.json", json.dumps([chatgpt()]))
        archive.writestr("more.jsonl", jsonl({"prompt": "Q", "completion": "A"}))
    assert len(fetched(tmp_path, sink.getvalue())) == 2


def test_the_path_is_the_one_that_the_page_shows_in_whatever_order_the_nodes_are(tmp_path):
    given = chatgpt()
    given["mapping"] = dict(reversed(given["mapping"].items()))
    (record,) = fetched(tmp_path, jsonl(given))
    assert [said(message)[1] for message in record["messages"]] == TALK
    old = one(tmp_path, current_node="old")
    assert [said(message)[1] for message in old["messages"]] == [TALK[0], "An animal."]
    assert (record["model"], old["model"]) == ("gpt-4", "gpt-3.5")


def test_every_branch_is_a_record_whose_id_ends_in_its_last_node(tmp_path):
    records = fetched(tmp_path, jsonl(chatgpt()), branches="all")
    assert {record["id"]: len(record["messages"]) for record in records} == {"c1:old": 2, "c1:a2": 4}


def test_branches_that_differ_in_hidden_nodes_are_one(tmp_path):
    nodes = [node("q", None, "user", "Q"), node("a", "q", "assistant", "A"), node("t", "a", "tool", "x", name="python"), node("u", "a", "tool", "y", name="web")]  # fmt: skip
    assert len(fetched(tmp_path, jsonl(chatgpt(*nodes)), branches="all")) == 1


def test_an_answer_names_its_tools_and_its_thoughts_are_apart(tmp_path):
    thoughts = {"content_type": "thoughts", "thoughts": [{"summary": "Counting", "content": "One, two."}]}
    record = one(
        tmp_path,
        node("q", None, "user", "How many?"),
        node("t", "q", "assistant", content=thoughts),
        node("r", "t", "assistant", content={"content_type": "reasoning_recap", "content": "Thought for 2 s"}),
        node("a", "r", "assistant", "Let me count.", metadata={"model_slug": "o3"}),
        node("c", "a", "assistant", recipient="python", content={"content_type": "code", "text": "1 + 1"}),
        node("x", "c", "tool", name="python", content={"content_type": "execution_output", "text": "2"}),
        node("b", "x", "assistant", "Two.", metadata={"model_slug": "o3"}),
    )
    assert record["messages"] == [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Let me count.\n\nTwo.", "reasoning_content": "Counting\nOne, two.", "tools": ["python"]},
    ]  # fmt: skip
    assert record["model"] == "o3"


def test_a_question_names_its_attachments_and_keeps_its_words(tmp_path):
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file://1"}
    voice = {"content_type": "audio_transcription", "text": "And this?", "direction": "in"}
    first, _, second, _ = one(
        tmp_path,
        node("q", None, "user", picture, "What is it?", metadata={"attachments": [{"id": "1", "name": "reed.png"}]}),
        node("a", "q", "assistant", "A reed."),
        node("q2", "a", "user", picture, voice, create_time=1700000000),
        node("a2", "q2", "assistant", "Another."),
    )["messages"]
    assert first == {"role": "user", "content": "What is it?", "attachments": ["reed.png"]}
    assert second == {"role": "user", "content": "And this?", "created_at": "2023-11-14T22:13:20Z", "attachments": ["image_asset_pointer"]}  # fmt: skip


def test_what_the_page_hides_is_no_message(tmp_path):
    hidden = {"is_visually_hidden_from_conversation": True}
    record = one(
        tmp_path,
        node("s", None, "system", "You are ChatGPT."),
        node("i", "s", "user", "I am a gardener.", content={"content_type": "user_editable_context"}),
        node("h", "i", "user", "Original custom instructions", metadata=hidden),
        node("q", "h", "user", "Q"),
        node("a", "q", "assistant", "A"),
    )
    assert list(map(said, record["messages"])) == [("user", "Q"), ("assistant", "A")]


def test_an_answer_that_is_a_picture_alone_is_an_empty_answer(tmp_path):
    record = one(
        tmp_path,
        node("q", None, "user", "Draw it."),
        node("c", "q", "assistant", '{"prompt": "reed"}', recipient="dalle.text2im"),
        node("p", "c", "tool", {"content_type": "image_asset_pointer"}, name="dalle.text2im"),
        node("q2", "p", "user", "Thanks!"),
        node("a", "q2", "assistant", "You are welcome."),
    )
    assert record["messages"][1] == {"role": "assistant", "content": "", "tools": ["dalle.text2im"]}


def test_a_citation_is_the_link_that_the_page_shows(tmp_path):
    mark, bare = "\ue200cite\ue202turn0search0\ue201", "\ue200cite\ue202turn0search1\ue201"
    links = [{"matched_text": mark, "alt": "([reeds](https://example.org))"}]
    answer = node("a", "q", "assistant", f"A grass {mark}.{bare}", metadata={"content_references": links})
    record = one(tmp_path, node("q", None, "user", "Q"), answer)
    assert record["messages"][1]["content"] == "A grass ([reeds](https://example.org))."


@pytest.mark.parametrize(
    "given", [{}, {"a": None}, {"a": {"message": None}}, {"a": {"parent": "b"}, "b": {"parent": "a"}}]
)
def test_a_conversation_without_a_message_is_rejected_as_empty(tmp_path, given):
    data = jsonl({"mapping": given, "current_node": "a"}, chatgpt())
    assert len(fetched(tmp_path, data, stats=str(tmp_path / "stats"))) == 1
    assert json.loads((tmp_path / "stats").read_text())["reasons"] == {"empty": 1}


def test_code_as_an_answer_is_a_block_of_code(tmp_path):
    code = {"content_type": "code", "language": "python", "text": "1 + 1"}
    record = one(tmp_path, node("q", None, "user", "Q"), node("a", "q", "assistant", content={**code, "parts": None}))
    assert record["messages"][1]["content"] == "```python\n1 + 1\n```"


def test_a_page_saved_from_the_screen_gives_its_messages_which_clean_converts(tmp_path, vtools):
    done = vtools("fetch", stdin=SAVED_PAGE)
    assert done.records[0]["source"] == {"kind": "chatgpt-page", "uri": "stdin", "title": "Reeds & more"}
    assert done.records[0]["model"] == "gpt-4o"
    cleaned = vtools("clean", stdin=done.stdout).records[0]["messages"]
    assert list(map(said, cleaned)) == [("user", "What is a reed?"), ("assistant", "A **grass**.")]


@pytest.mark.parametrize("page", [
    b"<!DOCTYPE html><html><head><title>Wait here</title></head><body>challenge-platform</body></html>",
    next_page({"props": {"pageProps": {"serverResponse": {"type": "error"}}}}),
    router_page({"title": "no turns"}),
])  # fmt: skip
def test_a_page_without_a_conversation_is_refused_by_name(page):
    assert "stdin:1: an HTML page, not JSON, without a conversation" in running.bad("fetch", stdin=page)


def test_a_table_that_refers_to_itself_without_end_is_refused():
    table = ["title", "linear_conversation", {"_0": 0, "_1": 3}, [4, 4, 4, 4], {"_0": 3, "_1": 3}]
    page = f"<html>streamController.enqueue({json.dumps(json.dumps(table))})</html>".encode()
    assert "refers to itself" in running.bad("fetch", stdin=page)


def test_texts_of_a_share_page_are_as_written(tmp_path):
    text = 'He said: "</script>" \\ \u2028 ä 😀\n\tend'
    data = shared(chatgpt(node("q", None, "user", text), node("a", "q", "assistant", text)))
    for page in (router_page(data), next_page({"props": {"pageProps": {"serverResponse": {"data": data}}}})):
        assert [said(message)[1] for message in fetched(tmp_path, page)[0]["messages"]] == [text, text]
