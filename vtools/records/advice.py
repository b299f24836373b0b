"""What to do about a record whose shape or roles are not known."""

import re
import shlex
from typing import Any

from vtools.records import conversation, naming, objects
from vtools.records.jsonl import Reject

_FETCHED = ("mapping", "chat_messages")  # the exports of ChatGPT and Claude
_KNOWN = ("messages", "conversations", "conversation", "items")


def for_record(reject: Reject, record: Any) -> str:
    """The option that would read this rejected record, as far as it can be told; empty if it cannot."""
    if not isinstance(record, dict):
        return ""
    if reject.reason == "unknown_role":
        return _role(reject.detail, record)
    if any(isinstance(record.get(key), dict | list) for key in _FETCHED):
        return "`vtools fetch` reads it"
    if reject.reason == "bad_schema" and not any(record.get(key) for key in _KNOWN):
        return _columns(record)
    return ""


def _role(detail: str, record: dict[str, Any]) -> str:
    """The place of the turn tells who speaks: the answer follows the question."""
    found = re.match(r"(\w+)\[(\d+)\].*?'(.+)'", detail)
    turns = record.get(found[1]) if found else None
    if not found or not isinstance(turns, list):
        return ""
    before = turns[int(found[2]) - 1] if found[2] != "0" else {}
    spelled = str(before.get("role") or before.get("from") or "").lower() if isinstance(before, dict) else ""
    ours = "assistant" if conversation.ROLES.get(spelled) == "user" else "user"
    return f"--role {shlex.quote(f'{found[3].lower()}={ours}')}"


def _columns(record: dict[str, Any]) -> str:
    for key, item in record.items():
        if isinstance(item, list) and item and objects.is_turn(item[0]):
            return f"--columns messages={shlex.quote(key)}"
    texts = [key for key, item in record.items() if isinstance(item, str)]
    return naming.suggested(texts) if len(texts) > 1 else ""
