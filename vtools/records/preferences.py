"""Preference rows: the chosen answer ends the conversation, the rejected one stays beside it; and labels of answers."""

from typing import Any, TypeGuard

from vtools.records.jsonl import Record, Reject
from vtools.records.message import Message, Roles, messages_of, text_of

KEYS = frozenset(("chosen", "chosen_messages", "rejected", "rejected_messages", "label", "kto_tag"))


def chosen(record: Record) -> bool:
    """Whether an object has a chosen answer."""
    return bool(record.get("chosen") or record.get("chosen_messages"))


def settle(rest: Record, messages: list[Message], roles: Roles) -> list[Message]:
    """The conversation with its chosen answer, given the messages before; `rest` keeps the rejected one's messages.

    An answer may be a text, a message, a list of messages, or the whole conversation. Raises Reject, also for a label
    that says that the answer is bad.
    """
    for key in ("label", "kto_tag"):
        if rest.get(key) is False:
            raise Reject("bad_label", f"{key} is false")
    good = _taken(rest, "chosen", roles)
    given = rest.get("rejected") or rest.get("rejected_messages")
    whole = messages if good is None else _whole(messages, good, "chosen")
    if good is None and not _are_turns(given):
        for key in ("rejected", "rejected_messages"):
            if rest.get(key) is None or rest[key] == []:  # tables of mixed shapes have null columns
                rest.pop(key, None)
        return whole
    bad = _taken(rest, "rejected", roles)
    if bad is not None:
        if not whole or whole[-1]["role"] != "assistant":
            raise Reject("empty", "there is a rejected answer and no chosen one")
        bad = _whole(messages if good is not None else messages[:-1], bad, "rejected")
        if len(bad) == len(whole) and all(map(_same, bad, whole)):
            raise Reject("bad_label", "the rejected answer is the chosen one")
        shared = 0
        while shared < min(len(bad), len(whole)) - 1 and _same(bad[shared], whole[shared]):
            shared += 1
        rest["rejected"] = bad[shared:]
    return whole


def of(record: Record) -> list[Message]:
    """The messages of the rejected answer; none if the record has no preference."""
    found = record.get("rejected")
    return found if _are_turns(found) else []


def _are_turns(given: Any) -> TypeGuard[list[Message]]:
    """Whether messages are under a key that other people may use for anything."""
    return isinstance(given, list) and all(
        isinstance(turn, dict) and not {"content", "value"}.isdisjoint(turn) for turn in given
    )


def _taken(rest: Record, name: str, roles: Roles) -> list[Message] | None:
    found = [rest.pop(key) for key in (name, f"{name}_messages") if key in rest]
    given = next(filter(None, found), None)
    if given is None:
        return None
    if isinstance(given, dict):
        given = [given]
    if isinstance(given, list):
        return messages_of(given, name, roles)
    return [{"role": "assistant", "content": text_of(given, name)}]


def _whole(messages: list[Message], answer: list[Message], name: str) -> list[Message]:
    """The conversation that ends with an answer, which may repeat what comes before it."""
    if answer[-1]["role"] != "assistant":
        raise Reject("bad_schema", f"{name} does not end with an answer")
    if answer[0]["role"] != "assistant":
        frame = [message for message in messages[:1] if message["role"] == "system" != answer[0]["role"]]
        return frame + answer
    if not messages:
        raise Reject("bad_schema", f"{name} has no question before it")
    if messages[-1]["role"] != "assistant":
        return messages + answer
    if not _same(messages[-1], answer[-1]):
        raise Reject("bad_schema", f"{name}: the conversation before it has another answer already")
    return messages


def _same(first: Message, second: Message) -> bool:
    return bool(first["role"] == second["role"] and first["content"] == second["content"])
