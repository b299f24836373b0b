"""Which turns of a conversation are kept: roles in order, an answer for every question."""

import itertools
import re

from vtools.records.conversation import Message, is_trained
from vtools.records.jsonl import Reject

# A text with none of these is empty: white space and zero-width characters are invisible.
_VISIBLE = re.compile("[^\\s\u200b\u200c\u200d\u2060\ufeff\xad]")
# Translating by a table takes a fifth of the time of deleting or searching for its characters.
_SHAPES = bytes(ord("0") if 48 <= byte < 58 else byte if byte > 31 or byte in b"\t\n\r" else 1 for byte in range(256))
Lost = dict[str, int]  # turns by why they went; missing ones are 0
_last: tuple[list[Message], bytes] = ([], b"")


def joined(messages: list[Message]) -> bytes:
    """All texts as UTF-8, joined by \\xff; cached for the last list, since several filters ask in a row."""
    global _last
    if _last[0] is not messages:
        _last = (messages, b"\xff".join([message["content"].encode("utf-8", "surrogatepass") for message in messages]))
    return _last[1]


def shape(messages: list[Message], step: int = 1) -> bytes:
    """The same with 0 for every digit and \\1 for every control character except tabs and line ends; or every n-th."""
    return joined(messages)[::step].translate(_SHAPES)


def is_empty(text: str) -> bool:
    """Whether a text shows no visible character."""
    return not "!" <= text[:1] <= "~" and _VISIBLE.search(text) is None


def count(messages: list[Message]) -> int:
    """The number of turns: of messages except those of the system. What `clean` writes has as many for `split`."""
    return len(messages) - [message["role"] for message in messages].count("system")


def ordered(messages: list[Message], merge: bool, lost: Lost) -> list[Message]:
    """From the first question to the last answer, with a leading system message; the same list object if unchanged.

    With `merge`, consecutive messages of one role are joined by a blank line, except answers of which only one is
    trained; otherwise they raise Reject("role_order"). Raises Reject("empty") when nothing remains. `lost` counts the
    turns that go, by reason, and those that were `merged` into another.
    """
    roles = [message["role"] for message in messages]
    pairs, rest = divmod(len(roles) - (roles[:1] == ["system"]), 2)
    if pairs > 0 and not rest and roles[-2 * pairs :] == ["user", "assistant"] * pairs:
        return messages
    first = next((place for place, role in enumerate(roles) if role == "user"), len(messages))
    leading = [message for message in messages[:first] if message["role"] == "system"]
    lost["no_question"] += first - len(leading)
    kept: list[Message] = []
    for place, message in enumerate([*leading, *messages[first:]]):
        if kept and kept[-1]["role"] == message["role"]:
            if not merge:
                raise Reject("role_order", f"two {message['role']} messages in a row, the second is number {place}")
            if message["role"] == "assistant" and is_trained(message) != is_trained(kept[-1]):
                kept.append(message)
                continue
            lost["merged"] += message["role"] != "system"
            texts = [text for text in (kept[-1]["content"], message["content"]) if not is_empty(text)]
            kept[-1] = {**message, **kept[-1], "content": "\n\n".join(texts)}
        elif message["role"] == "system" and kept:
            raise Reject("role_order", f"a system message after a {kept[-1]['role']} message")
        else:
            kept.append(message)
    while kept and kept[-1]["role"] != "assistant":
        lost["unanswered"] += kept.pop()["role"] == "user"
    if not kept:
        raise Reject("empty", "no question with an answer" if messages else "no messages")
    return kept


def answered(messages: list[Message], lost: Lost) -> list[Message]:
    """The messages without each question that is empty or has only empty answers; the same list object if unchanged.

    `messages` are in order. Raises Reject("empty") when none remains; `lost` counts the turns that go.
    """
    if all(["!" <= message["content"][:1] <= "~" for message in messages]):  # the usual case
        return messages
    kept = messages[: messages[0]["role"] == "system"]
    start = len(kept)
    asked = [place for place in range(start, len(messages)) if messages[place]["role"] == "user"]
    for begin, end in itertools.pairwise([*asked, len(messages)]):
        answers = [message for message in messages[begin + 1 : end] if not is_empty(message["content"])]
        if answers and not is_empty(messages[begin]["content"]):
            kept += [messages[begin], *answers]
    if len(kept) == start:
        raise Reject("empty", "every question or its answer is empty")
    lost["empty"] += len(messages) - len(kept)
    return kept if len(kept) < len(messages) else messages
