"""Conversations that occurred before, or are the start of a longer copy of the same chat."""

import json
from collections.abc import Sequence
from typing import Any

from vtools.records import conversation, preferences
from vtools.records.conversation import Message
from vtools.records.jsonl import Record

_TOOLS = ("tools", "functions")
_CALLS = ("tool_calls", "function_call", "reasoning_content")
_BESIDE = frozenset((*_TOOLS, "rejected"))
_NOTHING = ("[]", "{}", "null", "")  # of tools written as JSON text


class Exact:
    """Detects texts that occurred before, by their key: about 80 bytes each, more if ids are kept."""

    def __init__(self, name_first: bool = False) -> None:
        self.seen: set[int] = set()
        self.first: dict[int, str] | None = {} if name_first else None

    def before(self, key: int, identity: str) -> str | None:
        """The detail of a reject if the key occurred before; remembers the key."""
        if key in self.seen:
            return "the same texts came before" + (f", as record {self.first[key]}" if self.first else "")
        self.seen.add(key)
        if self.first is not None:
            self.first[key] = identity
        return None


class Longer:
    """Detects conversations that another record continues, after all were noted; about 100 bytes per beginning."""

    def __init__(self) -> None:
        self.starts: dict[int, str] = {}

    def note(self, starts: list[int], identity: str) -> None:
        """Remember the keys of a conversation's beginnings."""
        for key in starts:
            self.starts.setdefault(key, identity)

    def goes_on(self, key: int) -> str | None:
        """Which record continues the conversation with this key, if any."""
        return f"record {self.starts[key]} is a longer version of the same chat" if key in self.starts else None


def key(record: Record, texts: bytes | None = None) -> int:
    """128 bits that depend on what a model will see of a record: `conversation.text_key`, tools and trained answers.

    `texts` are the texts in UTF-8 joined by \\xff, if the caller has them.
    """
    messages = record["messages"]
    if _BESIDE.isdisjoint(record) and not any([len(message) > 2 for message in messages]):  # the usual case
        return conversation.text_key(messages, texts)
    answer = preferences.of(record)
    beside = [[message["role"], message["content"].strip()] for message in answer]
    return _with(conversation.text_key(messages, texts), _tools(record), list(map(_marks, messages)), beside)


def starts(record: Record) -> list[int]:
    """For each answer except the last, the `key` of the conversation up to there."""
    import hashlib

    tools, marks = _tools(record), list(map(_marks, record["messages"]))
    texts, roles, keys = hashlib.sha256(), b"", []
    for place, message in enumerate(record["messages"][:-1]):
        texts.update((b"\xff" if place else b"") + conversation.bare(message["content"]))
        roles += b"\0" + message["role"].encode()
        if message["role"] == "assistant":
            digest = texts.copy()
            digest.update(roles)
            keys.append(_with(int.from_bytes(digest.digest()[:16]), tools, marks[: place + 1]))
    return keys


def _tools(record: Record) -> dict[str, Any]:
    """The tools that a record describes; none if they are null, empty or an empty list as text."""
    found = {name: record[name] for name in _TOOLS if record.get(name)}
    return {name: tools for name, tools in found.items() if not isinstance(tools, str) or tools.strip() not in _NOTHING}


def _marks(message: Message) -> dict[str, Any] | None:
    """What a model sees of a message besides its role and text, and whether it learns it; None is the usual case."""
    if len(message) == 2:
        return None
    calls = {name: message[name] for name in _CALLS if message.get(name)}
    context = message["role"] == "assistant" and not conversation.is_trained(message)
    return {**calls, "weight": 0} if context else calls


def _with(texts: int, tools: dict[str, Any], marks: list[Any], beside: Sequence[Any] = ()) -> int:
    """A key of texts, changed by what else there is, if there is anything."""
    if not (tools or beside or any(marks)):
        return texts
    import hashlib

    parts = [f"{texts:032x}", tools, [mark or None for mark in marks], beside]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16)
    return int.from_bytes(digest.digest())
