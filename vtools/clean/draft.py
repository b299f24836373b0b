"""A record on its way through the cleaning steps, and the definition of a step."""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from vtools.records.conversation import Message
from vtools.records.jsonl import Record, Reject


class Draft:
    """A record being cleaned, and what the steps found that is not part of the output."""

    __slots__ = ("converted", "key", "language", "record", "redacted", "sketch", "starts")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.redacted: Counter[str] | None = None  # by kind of personal data
        self.converted = 0  # answers that were HTML
        self.language: str | None = None
        self.key = 0  # `conversation.text_key` of the texts
        self.starts: list[int] = []  # the same of each shorter beginning
        self.sketch: Any = None


class Step(NamedTuple):
    """A named step: it may change the draft and return what it found; it raises Reject to drop the record."""

    name: str
    take: Callable[[Draft], str | None]


def test(reason: str, judge: Callable[[Record], str | None]) -> Step:
    """A step that drops a record when `judge` returns a detail."""

    def take(made: Draft) -> None:
        if (detail := judge(made.record)) is not None:
            raise Reject(reason, detail)

    return Step(reason, take)


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
