"""OpenAssistant's trees (oasst1, oasst2), and its flat messages.

    {"message_tree_id", "prompt": {"message_id", "role": "prompter" or "assistant", "text", "rank", "deleted",
     "created_date", "lang", "model_name", "replies": [the same]}}
    {"message_id", "parent_id", "message_tree_id", ...}     one message per row, the rows of a tree in a row

A reply of rank 0 is the best one: the conversation follows the best replies, or with --branches all each leaf has one.
"""

from collections.abc import Iterator
from typing import Any

from vtools.fetch import turns
from vtools.records import jsonl, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.message import ROLES, Message

NAME = "open-assistant"
KEYS = ("prompt", "message_tree_rows")
_ROW = (b'"message_id"', b'"parent_id"')


def sniff(value: Record) -> bool:
    prompt = value.get("prompt")
    return isinstance(value.get("message_tree_rows"), list) or (isinstance(prompt, dict) and "replies" in prompt)


def read(value: Record, branches: str) -> list[Record]:
    rows = {row["message_id"]: row for row in _rows(value) if isinstance(row.get("message_id"), str)}
    rows = {name: row for name, row in rows.items() if row.get("deleted") is not True}
    parents = {name: row.get("parent_id") for name, row in rows.items()}
    replies: dict[Any, list[str]] = {}
    for name, parent in parents.items():
        replies.setdefault(parent if isinstance(parent, str) else None, []).append(name)
    if None not in replies:
        raise Reject("bad_schema", "a tree without its first message; rows of a tree must follow one another")
    root = replies[None][0]
    leaf = root
    for _ in rows:
        if leaf in replies:
            leaf = min(replies[leaf], key=lambda name: _rank(rows[name]))
    identity = value.get("message_tree_id") or root
    found = [each for each in turns.leaves(parents) if root in turns.path(parents, each)]
    return [
        turns.record(
            f"{identity}:{each}" if branches == "all" else identity,
            [_message(rows[name]) for name in turns.path(parents, each)],
            created=rows[root].get("created_date"), lang=rows[root].get("lang"),
        )
        for each in (found if branches == "all" else [leaf])
    ]  # fmt: skip


def _rows(value: Record) -> Iterator[Record]:
    """The messages of a tree, parents before their replies."""
    rows = value.get("message_tree_rows")
    if isinstance(rows, list):
        yield from (row for row in rows if isinstance(row, dict))
        return
    waiting: list[tuple[Any, Any]] = [(value["prompt"], None)]
    while waiting:
        node, parent = waiting.pop()
        if isinstance(node, dict):
            yield {**{key: item for key, item in node.items() if key != "replies"}, "parent_id": parent}
            replies = node.get("replies")
            waiting += [(reply, node.get("message_id")) for reply in replies or ()] if isinstance(replies, list) else []


def _rank(row: Record) -> float:
    rank = row.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")


def _message(row: Record) -> Message:
    role, text, model = row.get("role"), row.get("text"), row.get("model_name")
    if not isinstance(role, str) or role not in ROLES:
        raise Reject("unknown_role", f"message {row['message_id']}: {role!r}")
    if not isinstance(text, str):
        raise Reject("bad_schema", f"message {row['message_id']} has no text")
    return turns.message(ROLES[role], text, model=model if isinstance(model, str) else None)


def trees(values: Iterator[streams.Value]) -> Iterator[streams.Value]:
    """The values, rows of one tree after another joined to one value."""
    held: list[Record] = []
    start: streams.Value | None = None
    for value in values:
        row = _row(value)
        if start and (row is None or row["message_tree_id"] != held[0]["message_tree_id"]):
            yield _tree(start, held)
            held, start = [], None
        if row is None:
            yield value
        else:
            held.append(row)
            start = start or value
    if start:
        yield _tree(start, held)


def _row(value: streams.Value) -> Record | None:
    if value.torn or not all(key in value.raw[:600] for key in _ROW):
        return None
    row = jsonl.parse(value)[0]
    return row if isinstance(row, dict) and isinstance(row.get("message_tree_id"), str) else None


def _tree(start: streams.Value, rows: list[Record]) -> streams.Value:
    tree = {"message_tree_id": rows[0]["message_tree_id"], "message_tree_rows": rows}
    return start._replace(raw=jsonl.dumps(tree), torn=None)
