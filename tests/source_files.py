"""A file of each source of `vtools fetch`, as its program, site or hub writes it, and what is in it."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

from chats import chat, jsonl

from vtools.fetch import fetch
from vtools.process import Failure

__all__ = ["Failure", "fetched", "files", "said"]
TALK = ["What is a reed?", "A grass.", "Where does it grow?", "In water."]


def fetched(folder: Path, data: bytes, **options: Any) -> list[dict]:
    """The records that `vtools fetch` makes of a file with these bytes."""
    (folder / "in").write_bytes(data)
    with contextlib.redirect_stderr(io.StringIO()):
        fetch([str(folder / "in")], out=str(folder / "out"), **options)
    return [json.loads(line) for line in (folder / "out").read_bytes().splitlines()]


def said(message: dict) -> tuple[str, str]:
    return message["role"], message["content"]


def node(name: str, parent: str | None, role: str = "", /, *parts: Any, **message: Any) -> dict[str, Any]:
    """A node of ChatGPT's mapping; without a role it has no message."""
    content = {"content_type": "text", "parts": list(parts), **message.pop("content", {})}
    about = {"author": {"role": role, "name": message.pop("name", None)}, "content": content, "recipient": "all"}
    return {name: {"id": name, "parent": parent, "children": [], "message": {**about, **message} if role else None}}


def chatgpt(*nodes: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A conversation of ChatGPT's export; by default TALK, whose first answer was regenerated."""
    nodes = nodes or (
        node("root", None),
        node("s", "root", "system", "", weight=0),
        node("q1", "s", "user", TALK[0], create_time=1700000000.25),
        node("old", "q1", "assistant", "An animal.", metadata={"model_slug": "gpt-3.5"}),
        node("a1", "q1", "assistant", TALK[1], metadata={"model_slug": "gpt-4"}),
        node("q2", "a1", "user", TALK[2]),
        node("a2", "q2", "assistant", TALK[3], metadata={"model_slug": "gpt-4"}),
    )
    mapping = {name: one for each in nodes for name, one in each.items()}
    for name, one in mapping.items():
        if one["parent"]:
            mapping[one["parent"]]["children"].append(name)
    about = {
        "title": "Reeds",
        "create_time": 1700000000.25,
        "update_time": 1700086400,
        "current_node": list(mapping)[-1],
    }
    return {"id": "c1", "conversation_id": "c1", **about, "mapping": mapping, **keys}


def shared(conversation: dict[str, Any]) -> dict[str, Any]:
    """The data of a share page of a conversation that has one branch."""
    return {**conversation, "linear_conversation": list(conversation["mapping"].values())}


def claude(*messages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A conversation of Claude's export; by default TALK, whose first answer was regenerated."""
    messages = messages or (
        said_by("human", "q1", None, TALK[0]),
        said_by("assistant", "old", "q1", "An animal."),
        said_by("assistant", "a1", "q1", TALK[1]),
        said_by("human", "q2", "a1", TALK[2]),
        said_by("assistant", "a2", "q2", TALK[3]),
    )
    about = {"name": "Reeds", "created_at": "2023-11-14T22:13:20.250000Z", "updated_at": "2023-11-15T22:13:20.000000Z"}
    return {"uuid": "c1", **about, "chat_messages": list(messages), **keys}


def said_by(sender: str, name: str, parent: str | None, text: str, *parts: dict, **keys: Any) -> dict[str, Any]:
    nobody = "00000000-0000-4000-8000-000000000000"
    content = [*parts, {"type": "text", "text": text}]
    about = {"uuid": name, "parent_message_uuid": parent or nobody, "sender": sender, "text": text, "content": content}
    return {**about, "created_at": "2023-11-14T22:13:20Z", "attachments": [], "files": [], **keys}


def next_page(data: Any) -> bytes:
    """A page made with Next.js."""
    text = json.dumps(data).replace("<", "\\u003c")
    return f'<!DOCTYPE html><html><head><title>ChatGPT</title></head><body><script id="__NEXT_DATA__" type="application/json">{text}</script></body></html>'.encode()


def router_page(data: Any) -> bytes:
    """A page made with React Router, which holds each value once, in a flat table."""
    table: list[Any] = []

    def place(value: Any) -> int:
        if value is None:
            return -5
        table.append(value)
        here = len(table) - 1
        if isinstance(value, dict):
            table[here] = {f"_{place(key)}": place(item) for key, item in value.items()}
        elif isinstance(value, list):
            table[here] = [place(item) for item in value]
        return here

    place({"loaderData": {"root": {"x": None}, "routes/share.$shareId.($action)": {"serverResponse": {"type": "data", "data": data}}}})  # fmt: skip
    whole = json.dumps(json.dumps(table) + "\n").replace("<", "\\u003c")
    return f"<!DOCTYPE html><html><head><title>ChatGPT - Reeds</title></head><script>window.__reactRouterContext.streamController.enqueue({whole});</script></html>".encode()


SAVED_PAGE = b"""<!DOCTYPE html><html><head><title>Reeds &amp; more</title></head><body>
<div data-message-author-role="user" data-message-id="q1"><div class="whitespace-pre-wrap">What is a reed?</div></div>
<div data-message-author-role="assistant" data-message-id="a1" data-message-model-slug="gpt-4o">
<div class="markdown prose w-full"><p>A <strong>grass</strong>.</p></div></div></body></html>"""

SHAREGPT = {"id": "2wtLdZm", "views": 3, "content": {"title": "Reeds", "model": "Model: GPT-4", "items": [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(TALK)]}}  # fmt: skip


def oasst(name: str, role: str, text: str, *replies: dict, **keys: Any) -> dict[str, Any]:
    about = {"message_id": name, "role": role, "text": text, "lang": "en", "deleted": False, "rank": None, **keys}
    return {**about, "replies": list(replies)}


TREE = {"message_tree_id": "q1", "tree_state": "ready_for_export", "prompt": oasst(
    "q1", "prompter", TALK[0],
    oasst("worse", "assistant", "An animal.", rank=1),
    oasst("a1", "assistant", TALK[1], oasst("q2", "prompter", TALK[2], oasst("a2", "assistant", TALK[3], rank=0)), rank=0),
    created_date="2023-01-31T10:00:00+00:00",
)}  # fmt: skip


def oasst_rows(node: dict[str, Any] = TREE["prompt"], parent: str | None = None) -> list[dict]:
    """The flat rows of a tree."""
    row = {"message_id": node["message_id"], "parent_id": parent, **node, "message_tree_id": "q1"}
    replies = row.pop("replies")
    return [row, *(each for reply in replies for each in oasst_rows(reply, node["message_id"]))]


def wildchat() -> dict[str, Any]:
    private = {"hashed_ip": "f00", "header": {"user-agent": "x"}, "state": "Bavaria", "country": "Germany"}
    turns = [{**message, **private, "turn_identifier": 1, "toxic": False} for message in chat(*TALK)]
    return {"conversation_hash": "c1", "model": "gpt-4", "timestamp": "2023-11-14T22:13:20+00:00", "conversation": turns, "language": "English", **private}  # fmt: skip


def database(folder: Path, script: str) -> bytes:
    path = folder / "made.db"
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.executescript(script)
    return path.read_bytes()


def llm(folder: Path) -> bytes:
    """The logs of `llm`: one conversation of two prompts, and a prompt of its own."""
    return database(folder, f"""
        CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
        CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT,
            response TEXT, conversation_id TEXT, datetime_utc TEXT);
        CREATE TABLE fragments (id INTEGER PRIMARY KEY, content TEXT);
        CREATE TABLE prompt_fragments (response_id TEXT, fragment_id INTEGER, "order" INTEGER);
        CREATE TABLE attachments (id TEXT PRIMARY KEY, type TEXT, path TEXT, url TEXT);
        CREATE TABLE prompt_attachments (response_id TEXT, attachment_id TEXT);
        CREATE TABLE tool_calls (id INTEGER PRIMARY KEY, response_id TEXT, name TEXT);
        INSERT INTO conversations VALUES ('c1', 'Reeds', 'gpt-4');
        INSERT INTO responses VALUES ('r1', 'gpt-4', '{TALK[0]}', 'Be brief.', NULL, '{TALK[1]}', 'c1', '2023-11-14T22:13:20+00:00');
        INSERT INTO responses VALUES ('r0', 'gpt-4', 'Alone?', NULL, NULL, 'Yes.', NULL, '2023-11-14T22:13:21+00:00');
        INSERT INTO responses VALUES ('r2', 'gpt-4', 'Where does it grow?', NULL, NULL, '', 'c1', '2023-11-15T22:13:20+00:00');
        INSERT INTO responses VALUES ('r3', 'gpt-4', '', NULL, NULL, '{TALK[3]}', 'c1', '2023-11-15T22:13:21+00:00');
        INSERT INTO fragments VALUES (1, 'Of plants:');
        INSERT INTO prompt_fragments VALUES ('r2', 1, 0);
        INSERT INTO attachments VALUES ('x', 'image/png', '/tmp/reed.png', NULL);
        INSERT INTO prompt_attachments VALUES ('r2', 'x');
        INSERT INTO tool_calls VALUES (1, 'r2', 'atlas');
    """)  # fmt: skip


def open_webui() -> dict[str, Any]:
    thoughts = '<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n> Water?\n> Yes.\n</details>\n'
    calls = '<details type="tool_calls" done="true" name="atlas">\n<summary>Done</summary>\n</details>\n'
    nodes = [
        {"id": "q1", "parentId": None, "role": "user", "content": TALK[0], "timestamp": 1700000000},
        {"id": "old", "parentId": "q1", "role": "assistant", "content": "An animal.", "model": "llama"},
        {"id": "a1", "parentId": "q1", "role": "assistant", "content": TALK[1], "model": "qwen"},
        {"id": "q2", "parentId": "a1", "role": "user", "content": TALK[2], "files": [{"name": "map.pdf"}]},
        {"id": "a2", "parentId": "q2", "role": "assistant", "content": thoughts + calls + TALK[3], "model": "qwen"},
    ]
    history = {"currentId": "a2", "messages": {one["id"]: one for one in nodes}}
    return {"id": "c1", "title": "Reeds", "created_at": 1700000000, "updated_at": 1700086400, "chat": {"title": "Reeds", "history": history, "messages": []}}  # fmt: skip


def lm_studio() -> dict[str, Any]:
    def asked(text: str) -> dict:
        versions = [{"type": "singleStep", "role": "user", "content": [{"type": "text", "text": each}]} for each in ("Hm?", text)]  # fmt: skip
        return {"versions": versions, "currentlySelected": 1}

    def answered(text: str) -> dict:
        steps = [
            {"type": "contentBlock", "style": {"type": "thinking"}, "content": [{"type": "text", "text": "Hm."}]},
            {
                "type": "contentBlock",
                "content": [{"type": "toolCallRequest", "name": "atlas"}, {"type": "text", "text": text}],
            },
            {"type": "debugInfoBlock", "debugInfo": "x"},
        ]
        return {"versions": [{"type": "multiStep", "role": "assistant", "senderInfo": {"senderName": "qwen"}, "steps": steps}], "currentlySelected": 0}  # fmt: skip

    turns = [(asked, answered)[place % 2](text) for place, text in enumerate(TALK)]
    return {"name": "Reeds", "createdAt": 1700000000250, "systemPrompt": "", "messages": turns, "lastUsedModel": {}}


def files(folder: Path) -> dict[str, bytes]:
    """A file of each source, in which TALK is the first conversation."""
    texts = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(TALK)]
    row = {"id": "c1", "title": "Reeds", "chat": json.dumps(open_webui()["chat"])}
    webui = f"""CREATE TABLE chat (id TEXT, user_id TEXT, title TEXT, chat JSON, created_at BIGINT, updated_at BIGINT);
        INSERT INTO chat VALUES ('c1', 'u', 'Reeds', '{row["chat"]}', 1700000000, 1700086400);"""
    one_branch = chatgpt(*(node(str(place), str(place - 1) if place else None, ("user", "assistant")[place % 2], text) for place, text in enumerate(TALK)))  # fmt: skip
    glaive = " ".join(f"{('USER', 'ASSISTANT')[place % 2]}: {text}{' <|endoftext|>' * (place % 2)}\n\n" for place, text in enumerate(TALK))  # fmt: skip
    return {
        "chatgpt": json.dumps([chatgpt()]).encode(),
        "chatgpt share page": next_page({"props": {"pageProps": {"serverResponse": {"data": shared(one_branch)}}}}),
        "chatgpt share page of React Router": router_page(shared(one_branch)),
        "claude": json.dumps([claude()]).encode(),
        "claude, shared": jsonl(
            {"conversation_uuid": "c1", "snapshot_name": "Reeds", "chat_messages": claude()["chat_messages"]}
        ),
        "sharegpt page": next_page({"props": {"pageProps": SHAREGPT}}),
        "sharegpt API": jsonl(SHAREGPT),
        "open assistant": jsonl(TREE),
        "open assistant, flat": jsonl(*oasst_rows()),
        "wildchat": jsonl(wildchat()),
        "lmsys": jsonl(
            {
                "conversation_id": "c1",
                "model": "vicuna-13b",
                "conversation": chat(*TALK),
                "turn": 2,
                "language": "English",
                "openai_moderation": [{"flagged": False}],
                "redacted": False,
            }
        ),
        "ultrachat": jsonl({"id": "0", "data": TALK}),
        "ultrachat 200k": jsonl({"prompt": TALK[0], "prompt_id": "f00", "messages": chat(*TALK)}),
        "openhermes": jsonl({"conversations": texts, "source": "airoboros", "category": None, "system_prompt": None}),
        "openai fine-tuning": jsonl({"messages": chat(*TALK)}),
        "openai preferences": jsonl(
            {
                "input": {"messages": chat(*TALK[:3])},
                "preferred_output": [{"role": "assistant", "content": TALK[3]}],
                "non_preferred_output": [{"role": "assistant", "content": "No."}],
            }
        ),
        "glaive": jsonl({"system": "SYSTEM: You are a helpful assistant.", "chat": glaive}),
        "llm": llm(folder),
        "open webui": json.dumps([open_webui()]).encode(),
        "open webui's database": database(folder, webui),
        "lm studio": json.dumps(lm_studio(), indent=1).encode(),
    }
