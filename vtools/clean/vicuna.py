"""FastChat's published cleaning rules (`clean_sharegpt.py`; fschat 0.2.36, and the rate-limit rule of June 2024).

Their order, thresholds and keys, for a comparable reproduction; the HTML conversion is ours. Decisions can differ only
where the two conversions do: in a text's first character, its length, or its being equal to another. A `plugins` key
that is empty counts as plug-ins, as it does there; FastChat's tests for repeated digits (`optional_clean.py`) and for
lists (`filter_wrong_format.py`) are programs of their own, and not part of this preset.
"""

import functools
from typing import Any

from vtools.clean.draft import Draft, Step, each
from vtools.clean.filters import SHORTEST
from vtools.clean.html import convert
from vtools.records import conversation, preferences
from vtools.records.conversation import Message
from vtools.records.jsonl import Reject

BLOCKED = ("openai", "chatgpt")
NOTICES = ("Too many requests in 1 hour. Try again later.", "!Too many requests in 1 hour. Try again later.")
_HUMAN, _GPT, _OTHER = "user", "assistant", "system"


def steps(engine: str) -> list[Step]:
    """FastChat's rules for one record."""
    return [Step("read", _read), Step("texts", functools.partial(_texts, engine))]


def _read(made: Draft) -> None:
    """The record with every role except FastChat's two as `system`; an extra message at either end is removed.

    Raises Reject: bad_schema, too_short.
    """
    known = {
        key: [_with_known_role(turn) for turn in turns] if key in _TURNS and isinstance(turns, list) else turns
        for key, turns in made.record.items()
    }
    made.record = conversation.read(known, frame=False)
    messages = made.record["messages"]
    made.turns = len(messages)  # FastChat knows no system messages: each counts
    made.lost = {"no_question": 0, "unanswered": 0}
    if len(messages) > 1 and messages[0]["role"] != _HUMAN:
        made.lost["no_question"] = 1
        messages = messages[1:]
    if len(messages) > 1 and messages[-1]["role"] == _HUMAN:
        made.lost["unanswered"] = 1
        messages = messages[:-1]
    if len(messages) < 2:
        raise Reject("too_short", f"{len(messages)} messages left in the order human, gpt")
    made.record["messages"] = messages


_TURNS = ("messages", "conversations", "conversation", "items")


def _with_known_role(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    known = {"human": _HUMAN, "gpt": _GPT}
    if turn.get("role"):  # not ShareGPT's shape: map its names to the same two roles
        known |= {"user": _HUMAN, "assistant": _GPT}
    role = turn.get("role") or turn.get("from")
    rest = {key: item for key, item in turn.items() if key not in ("role", "from")}
    return {"role": known.get(role, _OTHER) if isinstance(role, str) else _OTHER, **rest}


def _texts(engine: str, made: Draft) -> None:
    """The messages as Markdown, in pairs, up to the first that is empty or begins with an unprintable character.

    Raises Reject: role_order, blocked_word (anywhere in the raw text, tags too), html_parse, blocked_response,
    too_short; and empty, where the chosen answer of a preference is lost: FastChat has none.
    """
    kept: list[Message] = []
    count = 0
    for place, message in enumerate(made.record["messages"]):
        raw = message["content"]
        if message["role"] != (_HUMAN, _GPT)[place % 2]:
            raise Reject("role_order", f"messages[{place}] is not from {('human', 'gpt')[place % 2]}")
        if word := next((word for word in BLOCKED if word in raw.lower()), None):
            raise Reject("blocked_word", f"messages[{place}]: {word}")
        is_answer = message["role"] == _GPT
        text = _converted(engine, made, raw) if is_answer else convert.without_controls(raw).strip()
        if not text or not text[0].isprintable() or not raw.strip()[0].isprintable():
            break
        if is_answer and text.startswith(NOTICES):
            raise Reject("blocked_response", f"messages[{place}]: {text[:60]}")
        count += len(text)
        kept.append(message if text == raw else {**message, "content": text})
    kept = kept[: len(kept) // 2 * 2]
    if count < SHORTEST or not kept:
        raise Reject("too_short", f"{count} characters in {len(kept)} messages")
    made.lost["empty"] = len(made.record["messages"]) - len(kept)
    if "rejected" in made.record and (answer := preferences.of(made.record)):
        answer = each(answer, lambda message: _converted(engine, made, message["content"]))
        if made.lost["empty"] or made.lost["unanswered"] or not all([message["content"] for message in answer]):
            raise Reject("empty", "the chosen answer or the rejected one")
        made.record["rejected"] = answer
    made.record["messages"] = kept


def _converted(engine: str, made: Draft, raw: str) -> str:
    text = convert.to_markdown(raw, engine)
    made.converted += text != convert.without_controls(raw)
    return text.strip()


class Duplicates:
    """FastChat's last pass: duplicate ids, then plug-ins, then duplicate first pairs; remembers kept records."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.pairs: dict[int, str] = {}

    def check(self, made: Draft) -> None:
        """Remember the record. Raises Reject: dup_id, plugin, dup_exact."""
        record = made.record
        identity = record["id"]
        if identity in self.ids:
            raise Reject("dup_id", f"the id {identity} occurred before")
        if record.get("plugins") is not None:
            raise Reject("plugin", "the plugins key is set")
        pair = int.from_bytes(bytes.fromhex(conversation.content_id(record["messages"][:2])))
        if pair in self.pairs:
            raise Reject("dup_exact", f"record {self.pairs[pair]} begins with the same question and answer")
        self.ids.add(identity)
        self.pairs[pair] = identity
