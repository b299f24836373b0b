"""Open WebUI's exported chats, and its database webui.db.

    [{"id", "title", "created_at", "updated_at", "chat": {"title", "system", "history": {"currentId", "messages": {
       ID: {"id", "parentId", "role", "content", "timestamp", "model", "files": [{"name"}]}}},
      "messages": [the path to currentId]}}]

A chat is a tree, as in ChatGPT. Answers hold their thoughts and calls of tools as <details type="reasoning"> and other
types; thoughts go apart, tools are named. In webui.db, the table `chat` has such rows, `chat` as JSON text.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from vtools.fetch import sqlite, turns
from vtools.records.jsonl import Record, Reject
from vtools.records.message import ROLES, Message, text_of

NAME = "open-webui"
KEYS = ("chat",)
_DETAILS = re.compile(r'<details type="([a-z_]+)"([^<>]*+)>')
_END = "</details>"
_TOOL = re.compile(r'\bname="([^"]*)"')
_SUMMARY = re.compile(r"\s*<summary>[^<]*+</summary>")
_QUOTED = re.compile(r"^> ?", re.MULTILINE)


def sniff(value: Record) -> bool:
    chat = value.get("chat")
    return isinstance(chat, dict) and ("history" in chat or "messages" in chat)


def read(value: Record, branches: str) -> list[Record]:
    chat, identity = value["chat"], value.get("id")
    given = turns.inside(chat, "history", "messages")
    nodes = {name: node for name, node in given.items() if isinstance(node, dict)} if isinstance(given, dict) else {}
    parents = {name: node.get("parentId") for name, node in nodes.items()}
    current = turns.inside(chat, "history", "currentId")
    if nodes and branches == "all":
        paths = {leaf: [nodes[name] for name in turns.path(parents, leaf)] for leaf in turns.leaves(parents)}
    elif isinstance(current, str) and current in nodes:
        paths = {"": [nodes[name] for name in turns.path(parents, current)]}
    else:
        listed = chat.get("messages")
        paths = {"": [turn for turn in listed if isinstance(turn, dict)] if isinstance(listed, list) else []}
    system = chat.get("system")
    first = [turns.message("system", system)] if isinstance(system, str) and system else []
    return [
        turns.record(
            f"{identity}:{leaf}" if leaf and isinstance(identity, str) else identity,
            first + list(map(_message, path)) if path else [],
            title=value.get("title") or chat.get("title"), created=value.get("created_at") or chat.get("timestamp"),
            updated=value.get("updated_at"),
        )
        for leaf, path in paths.items()
    ] or [turns.record(identity, [])]  # fmt: skip


def _message(turn: dict[str, Any]) -> Message:
    role, model = turn.get("role"), turn.get("model")
    if not isinstance(role, str) or role not in ROLES:
        raise Reject("unknown_role", f"chat: {role!r}")
    text = text_of(turn.get("content") or "", "chat")
    thoughts: list[str] = []
    tools: list[str] = []
    if ROLES[role] == "assistant" and _END in text:
        text = _without_details(text, thoughts, tools)
    return turns.message(
        ROLES[role], text, created_at=turns.when(turn.get("timestamp")),
        model=model if isinstance(model, str) else None, reasoning_content="\n\n".join(thoughts),
        tools=list(dict.fromkeys(tools)), attachments=turns.names(turn.get("files"), "name", "type"),
    )  # fmt: skip


def _without_details(text: str, thoughts: list[str], tools: list[str]) -> str:
    """The text without its details, which are added to the thoughts and tools."""
    *pieces, last = text.split(_END)
    kept = ""
    for piece in pieces:
        start = _DETAILS.search(piece)
        if start is None:
            kept += piece + _END
            continue
        kept += piece[: start.start()].lstrip("\n")
        if start[1] == "reasoning":
            thoughts.append(_QUOTED.sub("", _SUMMARY.sub("", piece[start.end() :], count=1)).strip())
        else:
            name = _TOOL.search(start[2])
            tools.append(name[1] if name else start[1])
    return kept + (last.lstrip("\n") if thoughts or tools else last)


def sniff_tables(tables: Mapping[str, set[str]]) -> bool:
    return {"id", "title", "chat", "created_at", "updated_at"} <= tables.get("chat", set())


def table_objects(database: sqlite3.Connection, tables: Mapping[str, set[str]]) -> Iterator[Record]:
    for row in sqlite.rows(database, "SELECT id, title, chat, created_at, updated_at FROM chat ORDER BY rowid"):
        try:
            yield {**row, "chat": json.loads(row["chat"])}
        except (ValueError, TypeError, RecursionError):
            yield row  # which no source reads
