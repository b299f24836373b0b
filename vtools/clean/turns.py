"""Which turns of a conversation are kept: roles in order, an answer for every question."""

import re

from vtools.records.conversation import Message
from vtools.records.jsonl import Reject

# A text with none of these is empty: white space and zero-width characters are invisible.
_VISIBLE = re.compile("[^\\s\u200b\u200c\u200d\u2060\ufeff\xad]")
# Translating by a table takes a fifth of the time of deleting or searching for its characters.
_SHAPES = bytes(ord("0") if 48 <= byte < 58 else byte if byte > 31 or byte in b"\t\n\r" else 1 for byte in range(256))
_last: tuple[list[Message], bytes, bytes] = ([], b"", b"")


def joined(messages: list[Message]) -> bytes:
    """All texts as UTF-8, joined by \\xff; cached for the last list, since several filters ask in a row."""
    return _joined(messages)[1]


def shape(messages: list[Message]) -> bytes:
    """The same with 0 for every digit and \\1 for every control character except tabs and line ends."""
    return _joined(messages)[2]


def _joined(messages: list[Message]) -> tuple[list[Message], bytes, bytes]:
    global _last
    if _last[0] is not messages:
        texts = b"\xff".join([message["content"].encode("utf-8", "surrogatepass") for message in messages])
        _last = (messages, texts, texts.translate(_SHAPES))
    return _last


def is_empty(text: str) -> bool:
    """Whether a text shows no visible character."""
    return not "!" <= text[:1] <= "~" and _VISIBLE.search(text) is None


def ordered(messages: list[Message], merge: bool) -> list[Message]:
    """From the first question to the last answer, with a leading system message; the same list object if unchanged.

    With `merge`, consecutive messages of one role are joined by a blank line; otherwise they raise
    Reject("role_order"). Raises Reject("empty") when nothing remains.
    """
    roles = [message["role"] for message in messages]
    pairs, rest = divmod(len(roles) - (roles[:1] == ["system"]), 2)
    if pairs > 0 and not rest and roles[-2 * pairs :] == ["user", "assistant"] * pairs:
        return messages
    first = next((place for place, role in enumerate(roles) if role == "user"), len(messages))
    leading = [message for message in messages[:first] if message["role"] == "system"]
    kept: list[Message] = []
    for place, message in enumerate([*leading, *messages[first:]]):
        if kept and kept[-1]["role"] == message["role"]:
            if not merge:
                raise Reject("role_order", f"two {message['role']} messages in a row, the second is number {place}")
            texts = [text for text in (kept[-1]["content"], message["content"]) if not is_empty(text)]
            kept[-1] = {**message, **kept[-1], "content": "\n\n".join(texts)}
        elif message["role"] == "system" and kept:
            raise Reject("role_order", f"a system message after a {kept[-1]['role']} message")
        else:
            kept.append(message)
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
    if not kept:
        raise Reject("empty", "no question with an answer" if messages else "no messages")
    return kept


def until_empty(messages: list[Message]) -> list[Message]:
    """The turn pairs before the first empty question or answer. Raises Reject("empty") when none remains."""
    if all(["!" <= message["content"][:1] <= "~" for message in messages]):  # the usual case
        return messages
    start = 1 if messages[0]["role"] == "system" else 0
    for place in range(start, len(messages)):
        if is_empty(messages[place]["content"]):
            end = place - (place - start) % 2
            if end == start:
                raise Reject("empty", "the first question or its answer is empty")
            return messages[:end]
    return messages
