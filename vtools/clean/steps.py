"""The steps of cleaning, made once from what was chosen; `clean` runs them all, `--explain` one after the other."""

from __future__ import annotations

import functools
import importlib.util
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vtools import provenance
from vtools.clean import duplicates, filters, turns
from vtools.clean.html import convert
from vtools.records import conversation
from vtools.records.conversation import Message
from vtools.records.jsonl import Record, Reject


@dataclass(frozen=True)
class Choices:
    """What `vtools clean` was asked for; files by name, as every process looks its steps up by this."""

    engine: str = "auto"
    merge_same_role: bool = False
    preset: str | None = None
    keep: frozenset[str] = frozenset()
    special_tokens: str = "keep"
    personal: str | None = None
    blocked_words: str | None = None
    drop_refusals: bool = False
    refusals: str | None = None
    keep_languages: frozenset[str] = frozenset()
    skip_languages: frozenset[str] = frozenset()
    questions: tuple[str, ...] = ()
    ngram: int = 13
    moderation: tuple[str, str] | None = None
    dedupe: str = "first"
    near: float | None = None

    def has_optional(self) -> bool:
        """Whether anything is on that is off by default and needs no other record."""
        words = self.blocked_words or self.drop_refusals or self.refusals or self.keep_languages or self.skip_languages
        return bool(words or self.personal or self.questions or self.moderation or self.special_tokens != "keep")


class Draft:
    """A record on its way, and what the steps found out about it that is no part of it."""

    __slots__ = ("failure", "key", "record", "redacted", "sketch", "starts")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.redacted: Counter[str] | None = None  # by kind of personal data
        self.key = 0  # of its texts
        self.starts: list[int] = []  # keys of what it begins with
        self.sketch: Any = None
        self.failure: str | None = None  # why the run must end at this record


class Step(NamedTuple):
    """A named step: it may change the draft, and say what it found; it raises Reject to drop it."""

    name: str
    take: Callable[[Draft], str | None]


@functools.cache
def pure(choices: Choices) -> tuple[Step, ...]:
    """The steps that need no other record: cheap ones first, and all that change a text before those that judge it."""
    if choices.preset == "vicuna":
        from vtools.clean import optional

        steps = optional.vicuna_steps(choices)
    else:
        steps = [
            Step("read", _read),
            test("plugin", filters.plugin),
            Step("html", functools.partial(_html, choices.engine, _converter(choices.engine))),
            Step("turns", functools.partial(_turns, choices)),
        ]
    judging = [] if choices.preset else [test(one.__name__, one) for one in filters.FILTERS]
    if choices.has_optional():
        from vtools.clean import optional

        steps += [*optional.changing(choices), *judging, *optional.judging(choices)]
    else:
        steps += judging
    return tuple(step for step in steps if step.name not in choices.keep)


def ordered(choices: Choices, longer: duplicates.Longer | None = None, explain: bool = False) -> list[Step]:
    """The steps that look at the records before, with nothing seen yet; they see each draft in the input's order."""
    steps = []
    if choices.preset == "vicuna":
        from vtools.clean import optional

        steps.append(optional.vicuna_duplicates())
    elif "dup_exact" not in choices.keep:
        steps.append(Step("dup_exact", functools.partial(_exact, duplicates.Exact(name_first=explain), longer)))
    if choices.near is not None:
        from vtools.clean import optional

        steps.append(optional.near_duplicates(choices.near))
    return steps


def draft(choices: Choices, value: Record) -> Draft:
    """A record after all the steps that need no other. Raises Reject."""
    made = Draft(value)
    for step in pure(choices):
        step.take(made)
    prepare(choices, made)
    return made


def prepare(choices: Choices, made: Draft) -> None:
    """Stamp the record, and work out beside it what the ordered steps will ask for: here, not in the one process."""
    provenance.stamp(made.record, "clean")
    messages = made.record["messages"]
    if "dup_exact" not in choices.keep:
        made.key = conversation.text_key(messages, turns.joined(messages))
    if choices.dedupe == "longest":
        made.starts = duplicates.starts(messages)
    if choices.near is not None:
        from vtools.clean import near_duplicates

        made.sketch = near_duplicates.sketch(messages)


def test(reason: str, judge: Callable[[Record], str | None]) -> Step:
    """A step that drops what a function has something to say about."""

    def take(made: Draft) -> None:
        if (detail := judge(made.record)) is not None:
            raise Reject(reason, detail)

    return Step(reason, take)


def _read(made: Draft) -> None:
    made.record = conversation.read(made.record)


def _html(engine: str, converter: str, made: Draft) -> str | None:
    before = made.record["messages"]
    if b"\1" in turns.shape(before):
        texts = [convert.without_controls(message["content"]) for message in before]
    else:
        texts = [message["content"] for message in before]
    answers = [place for place, message in enumerate(before) if message["role"] == "assistant"]
    tags = b"<" in turns.joined(before)
    if tags or any([convert.has_counter(texts[place]) for place in answers]):
        converted = convert.converted([texts[place] for place in answers], engine)
        for place, text in zip(answers, converted, strict=True):
            texts[place] = text
    made.record["messages"] = with_texts(before, texts)
    return converter if tags and made.record["messages"] is not before else None


def _converter(engine: str) -> str:
    fast = engine != "reference" and importlib.util.find_spec("turbohtml") is not None
    return "turbohtml" if fast else "markdownify"


def _readable(message: Message, engine: str) -> str:
    text: str = message["content"]
    return convert.to_markdown(text, engine) if message["role"] == "assistant" else convert.without_controls(text)


def each(messages: list[Message], text_of: Callable[[Message], str]) -> list[Message]:
    """The messages with other texts; the same list if no text is another."""
    return with_texts(messages, [text_of(message) for message in messages])


def with_texts(messages: list[Message], texts: list[str]) -> list[Message]:
    """The messages with these texts; the same list if they are theirs."""
    after = [
        message if text is message["content"] else {**message, "content": text}
        for message, text in zip(messages, texts, strict=True)
    ]
    return messages if all(map(operator.is_, messages, after)) else after


def _turns(choices: Choices, made: Draft) -> None:
    before = made.record["messages"]
    messages = turns.ordered(before, choices.merge_same_role)
    # Two texts without HTML may look like HTML together.
    if choices.merge_same_role and messages is not before and "html" not in choices.keep:
        messages = each(messages, lambda message: _readable(message, choices.engine))
    made.record["messages"] = turns.until_empty(messages)


def _exact(exact: duplicates.Exact, longer: duplicates.Longer | None, made: Draft) -> None:
    detail = (longer and longer.goes_on(made.key)) or exact.before(made.key, made.record["id"])
    if detail:
        raise Reject("dup_exact", detail)
