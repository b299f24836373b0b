"""Claude's own export, the ZIP or its conversations.json, and the data of Claude's share pages.

    [{"uuid", "name", "created_at", "updated_at", "chat_messages": [
       {"uuid", "parent_message_uuid", "sender": "human" or "assistant", "created_at", "text",
        "content": [{"type": "text", "text"}, {"type": "thinking", "thinking"}, {"type": "tool_use", "name"}, ...],
        "attachments": [{"file_name"}], "files": [{"file_name"}]}]}]

Where messages name their parents, they are a tree: the page shows the path from the newest message to the root. Share
pages write `conversation_uuid` and `snapshot_name`.
"""

from typing import Any

from vtools.fetch import turns
from vtools.records.jsonl import Record, Reject
from vtools.records.message import Message

NAME = "claude"
KEYS = ("chat_messages",)


def sniff(value: Record) -> bool:
    return isinstance(value.get("chat_messages"), list)


def read(value: Record, branches: str) -> list[Record]:
    identity = value.get("uuid") or value.get("conversation_uuid")
    given = [turn for turn in value["chat_messages"] if isinstance(turn, dict)]
    nodes = {turn["uuid"]: turn for turn in given if isinstance(turn.get("uuid"), str)}
    parents = {name: turn.get("parent_message_uuid") for name, turn in nodes.items()}
    if len(nodes) < len(given) or not any(isinstance(parent, str) and parent in nodes for parent in parents.values()):
        paths = {"": given}
    elif branches == "all":
        paths = {leaf: [nodes[name] for name in turns.path(parents, leaf)] for leaf in turns.leaves(parents)}
    else:
        chosen = value.get("current_leaf_message_uuid")
        leaf = chosen if isinstance(chosen, str) and chosen in nodes else list(nodes)[-1]
        paths = {leaf: [nodes[name] for name in turns.path(parents, leaf)]}
    model = value.get("model")
    return [
        turns.record(
            f"{identity}:{leaf}" if branches == "all" and leaf and isinstance(identity, str) else identity,
            list(map(_message, path)), title=value.get("name") or value.get("snapshot_name"),
            created=value.get("created_at"), updated=value.get("updated_at"),
            model=model if isinstance(model, str) else None,
        )
        for leaf, path in paths.items()
    ] or [turns.record(identity, [])]  # fmt: skip


def _message(turn: dict[str, Any]) -> Message:
    sender = turn.get("sender")
    if sender not in ("human", "assistant"):
        raise Reject("unknown_role", f"chat_messages: {sender!r}")
    content = turn.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [text for part in parts if part.get("type") == "text" and isinstance(text := part.get("text"), str)]
    thoughts = [text for part in parts if isinstance(text := part.get("thinking"), str)]
    text = "\n\n".join(filter(None, texts)) if parts else next(
        (each for each in (content, turn.get("text")) if isinstance(each, str)), ""
    )  # fmt: skip
    return turns.message(
        "user" if sender == "human" else "assistant", text, created_at=turns.when(turn.get("created_at")),
        reasoning_content="\n\n".join(filter(None, thoughts)),
        tools=list(dict.fromkeys(turns.names([part for part in parts if part.get("type") == "tool_use"], "name"))),
        attachments=turns.names(turn.get("attachments"), "file_name", "id")
        + turns.names(turn.get("files"), "file_name", "file_uuid"),
    )  # fmt: skip
