"""A record on its way through the cleaning steps, and the definition of a step."""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from vtools.records import preferences
from vtools.records.conversation import Message
from vtools.records.jsonl import Record, Reject


class Draft:
    """A record being cleaned, and what the steps found that is not part of the output."""

    __slots__ = ("converted", "key", "language", "lost", "record", "redacted", "sketch", "starts", "turns")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.redacted: Counter[str] | None = None  # by kind of personal data
        self.language: str | None = None
        self.converted = 0  # answers that were HTML
        self.turns = 0  # as read
        self.lost: dict[str, int] = {}  # turns by why they went, and those that were merged into another
        self.key = 0  # `duplicates.key`
        self.starts: list[int] = []  # the same of each shorter beginning
        self.sketch: Any = None


class Step(NamedTuple):
    """A named step: it may change the draft and return what it found; it raises Reject to drop the record."""

    name: str
    take: Callable[[Draft], str | None]


def test(reason: str, judge: Callable[[Record], str | None], alike: bool = False) -> Step:
    """A step that drops a record when `judge` returns a detail; with `alike`, of a rejected answer too."""

    def take(made: Draft) -> None:
        detail = judge(made.record)
        if detail is None and alike and "rejected" in made.record and (answer := preferences.of(made.record)):
            detail = judge({"messages": answer})
            detail = detail and detail.replace("messages[", "rejected[", 1)
        if detail is not None:
            raise Reject(reason, detail)

    return Step(reason, take)


def change(name: str, take: Callable[[Draft], str | None]) -> Step:
    """A step that changes texts, those of a rejected answer too."""

    def both(made: Draft) -> str | None:
        said = take(made)
        if "rejected" in made.record and (answer := preferences.of(made.record)):
            other = Draft({"messages": answer})
            said = "; ".join(filter(None, (said, take(other)))) or None
            made.record["rejected"] = other.record["messages"]
            made.converted += other.converted
            if other.redacted:
                made.redacted = other.redacted + (made.redacted or Counter())
        return said

    return Step(name, both)


def each(messages: list[Message], text_of: Callable[[Message], str]) -> list[Message]:
    """The messages with each text replaced; the same list object if no text changes."""
    return with_texts(messages, [text_of(message) for message in messages])


def with_texts(messages: list[Message], texts: list[str]) -> list[Message]:
    """The messages with these texts; the same list object if no text changes."""
    after = [
        message if text is message["content"] else {**message, "content": text}
        for message, text in zip(messages, texts, strict=True)
    ]
    return messages if all(map(operator.is_, messages, after)) else after
