"""The logs of the program `llm`, an SQLite file: `vtools fetch "$(llm logs path)"`.

    conversations(id, name, model)
    responses(id, model, prompt, system, response, conversation_id, datetime_utc)
    attachments(id, type, path, url), prompt_attachments(response_id, attachment_id)
    fragments(id, content), prompt_fragments(response_id, fragment_id, "order"), tool_calls(response_id, name)

Fragments come before the prompt. Older files lack the tables of the last two lines.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from vtools.fetch import sqlite, turns
from vtools.records.jsonl import Record
from vtools.records.message import Message

NAME = "llm"
KEYS = ("llm_responses",)


def sniff(value: Record) -> bool:
    return isinstance(value.get("llm_responses"), list)


def read(value: Record, branches: str) -> list[Record]:
    given = [each for each in value["llm_responses"] if isinstance(each, dict)]
    system = next((each["system"] for each in given if each.get("system")), None)
    messages = [turns.message("system", str(system))] if system else []
    for each in given:
        messages += _pair(each)
    times = [each.get("datetime_utc") for each in given] or [None]
    title = value.get("name")
    return [turns.record(value.get("id"), turns.joined(messages), title=title, created=times[0], updated=times[-1])]


def _pair(each: Record) -> list[Message]:
    fragments = each.get("fragments")
    texts = [*(fragments if isinstance(fragments, list) else []), each.get("prompt")]
    asked = "\n".join(text for text in texts if isinstance(text, str) and text)
    reply, model = each.get("response"), each.get("model")
    files, tools = each.get("attachments"), each.get("tools")
    created = turns.when(each.get("datetime_utc"))
    answer = turns.message(
        "assistant", reply if isinstance(reply, str) else "", created_at=created,
        model=model if isinstance(model, str) else None, tools=tools if isinstance(tools, list) else None,
    )  # fmt: skip
    if not (asked or files):  # what a tool said goes back without a prompt
        return [answer]
    return [turns.message("user", asked, created_at=created, attachments=files), answer]


def sniff_tables(tables: Mapping[str, set[str]]) -> bool:
    return {"id", "prompt", "response", "conversation_id"} <= tables.get("responses", set())


def table_objects(database: sqlite3.Connection, tables: Mapping[str, set[str]]) -> Iterator[Record]:
    wanted = [each for each in ("model", "system", "datetime_utc") if each in tables["responses"]]
    chosen = ", ".join(["id", "prompt", "response", "conversation_id", *wanted])
    found: Record | None = None
    query = f"SELECT {chosen} FROM responses ORDER BY conversation_id, rowid"
    for row in sqlite.rows(database, query):
        conversation = row.pop("conversation_id")
        row |= _beside(database, tables, row["id"])
        if found and conversation is not None and found["id"] == conversation:
            found["llm_responses"].append(row)
            continue
        if found:
            yield found
        identity = conversation if conversation is not None else row["id"]
        found = {"id": identity, "name": _name(database, tables, conversation), "llm_responses": [row]}
    if found:
        yield found


def _name(database: sqlite3.Connection, tables: Mapping[str, set[str]], identity: Any) -> Any:
    if not {"id", "name"} <= tables.get("conversations", set()):
        return None
    found = next(sqlite.rows(database, "SELECT name FROM conversations WHERE id = ?", identity), None)
    return found["name"] if found else None


_BESIDE = {
    "fragments": (
        ("fragments", "prompt_fragments"),
        "SELECT content AS found FROM prompt_fragments JOIN fragments ON fragments.id = fragment_id "
        'WHERE response_id = ? ORDER BY "order"',
    ),
    "attachments": (
        ("attachments", "prompt_attachments"),
        "SELECT coalesce(path, url, type) AS found FROM prompt_attachments JOIN attachments "
        "ON attachments.id = attachment_id WHERE response_id = ?",
    ),
    "tools": (("tool_calls",), "SELECT DISTINCT name AS found FROM tool_calls WHERE response_id = ?"),
}


def _beside(database: sqlite3.Connection, tables: Mapping[str, set[str]], response: Any) -> Record:
    found = {}
    for key, (needed, query) in _BESIDE.items():
        if all(table in tables for table in needed):
            found[key] = [row["found"] for row in sqlite.rows(database, query, response) if row["found"]]
    return found
