"""The record: the shapes that are read and written, and content ids."""

import json
from typing import Any

from vtools.records import preferences
from vtools.records.jsonl import KINDS, Record, Reject
from vtools.records.message import ROLES, Message, Roles, is_trained, messages_of, text_of
from vtools.records.naming import NONE, Names

__all__ = [
    "Message", "content_id", "flaw", "formatted", "is_trained", "read", "shape", "text_key", "to_sharegpt",
]  # fmt: skip

SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
# Where a conversation is; under the last three there may be anything else.
_LISTS = ("messages", "conversations", "conversation", "items", "data")
_QUESTIONS = ("instruction", "prompt", "question", "query", "input")
_ANSWERS = ("output", "completion", "response", "answer")
_SYSTEM = ("system", "system_prompt", "system_message")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_IDS = ("id", "conversation_id", "conversation_hash", "uuid")
_FRAME = preferences.KEYS.union(_SYSTEM, _MEDIA)


def read(value: Record, names: Names = NONE, frame: bool = True) -> Record:
    """Turn an object of any known shape into a record; other keys pass through. Raises Reject.

    Shapes: OpenAI `messages`, ShareGPT `conversations` or `items` (`from`/`value`), lists of texts in turn, each also
    as JSON text or as an object of lists; a question and its answer under their usual names, with Alpaca's `input` and
    `history` and Dolly's `context`; `chosen` and `rejected` answers. A `system` column becomes the first message, and
    system messages in a row become one, unless `frame` is false. `names` adds roles and says which columns hold what.
    """
    rest = _from_columns(value, names.columns) if names.columns else dict(value)
    roles = ROLES | names.roles if names.roles else ROLES
    messages = _turns(rest, roles)
    if not _FRAME.isdisjoint(rest):
        messages = preferences.settle(rest, messages, roles)
        _refuse_media(rest, messages)
        messages = _system(rest) + messages if frame else messages
    if frame and [message["role"] for message in messages].count("system") > 1:
        messages = _joined(messages)
    for key in _LISTS[:2]:  # no list: else it would have been taken
        rest.pop(key, None)
    identity = _identity(rest)
    notes = rest.pop("vtools", None)
    record: Record = {"id": content_id(messages) if identity is None else identity, "messages": messages, **rest}
    if notes is not None:
        record["vtools"] = notes
    return record


def shape(value: Record) -> str:
    """The name of an object's shape, for `source.kind`."""
    for key in _LISTS:
        if value.get(key) and (turns := _listed(value[key])) and (key in _LISTS[:2] or _is_turns(turns)):
            return "sharegpt" if key in ("conversations", "items") else "messages"
    if preferences.chosen(value):
        return "preference"
    return "alpaca" if "instruction" in value else "prompt-completion"


def _turns(rest: Record, roles: Roles) -> list[Message]:
    """The messages of an object, without a chosen answer and a system column; their keys are removed."""
    wrong, empty = "", False
    for key in _LISTS:
        if (given := rest.get(key)) in (None, ""):  # tables of mixed shapes have null columns
            rest.pop(key, None)
            continue
        turns = _listed(given)
        if turns is None or (turns and key not in _LISTS[:2] and not _is_turns(turns)):
            wrong = wrong or (key if key in _LISTS[:2] else "")
            continue
        del rest[key]
        if turns:
            for other in _LISTS:
                if other in rest and (other in _LISTS[:2] or _is_turns(_listed(rest[other]) or [])):
                    del rest[other]
            return messages_of(turns, key, roles)
        empty = True
    question = _first(rest, _QUESTIONS)
    answer = _first(rest, tuple(key for key in _ANSWERS if key != question))
    if question and (answer or preferences.chosen(rest)):
        return _pair(rest, question, answer, roles)
    if empty or preferences.chosen(rest):
        return []
    if wrong:
        raise Reject("bad_schema", f"{wrong} is not a list")
    raise Reject("bad_schema", f"no messages, no question with an answer ({', '.join(list(rest)[:6]) or 'no keys'})")


def _listed(given: Any) -> list[Any] | None:
    """A list of turns; JSON text of one is parsed, and an object of lists is taken apart."""
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    if isinstance(given, dict) and given and all(isinstance(column, list) for column in given.values()):
        if len({len(column) for column in given.values()}) > 1:
            return None
        given = [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
    return given if isinstance(given, list) else None


def _is_turns(turns: list[Any]) -> bool:
    first = turns[0] if turns else None
    if isinstance(first, str):
        return len(turns) > 1 and all(isinstance(turn, str) for turn in turns)
    return isinstance(first, dict) and not {"role", "from", "sender"}.isdisjoint(first)


def _first(rest: Record, names: tuple[str, ...]) -> str | None:
    """The first of these keys that an object has, one with a value before one without."""
    there = [name for name in names if name in rest]
    return next((name for name in there if rest[name] not in (None, "", [])), there[0] if there else None)


def _pair(rest: Record, question: str, answer: str | None, roles: Roles) -> list[Message]:
    """A question and its answer, after what comes before them."""
    messages: list[Message] = []
    past = rest.get("history")
    if isinstance(past, list) or past is None:
        rest.pop("history", None)
        texts = [text for pair in past or [] for text in (pair if isinstance(pair, list) else [pair])]
        messages = messages_of(texts, "history", roles) if texts else []
    asked = rest.pop(question)
    if isinstance(asked, list):
        messages += messages_of(asked, question, roles)
    else:
        text = text_of(asked, question)
        given = ["input"] if question != "input" else []
        for key in [*given, "context"] if question in ("instruction", "question") else given:
            if key in rest and (rest[key] is None or isinstance(rest[key], str)):
                more = rest.pop(key)
                text += f"\n\n{more}" if more else ""
        messages.append({"role": "user", "content": text})
    if answer:
        replied = rest.pop(answer)
        if isinstance(replied, list) and not all(isinstance(part, str) for part in replied):
            messages += messages_of(replied, answer, roles)
        else:
            messages.append({"role": "assistant", "content": text_of(replied, answer)})
    return messages


def _from_columns(value: Record, columns: dict[str, str]) -> Record:
    rest = {key: item for key, item in value.items() if key not in columns.values() and key != "messages"}
    given = {ours: value.get(theirs) for ours, theirs in columns.items()}
    messages = given.get("messages")
    for role in ("system", "user", "assistant"):
        if role not in columns or (role == "system" and given[role] in (None, "")):
            continue
        if not isinstance(given[role], str):
            what = "not there" if given[role] is None else f"{KINDS[type(given[role])]}, not a text"
            keys = ", ".join(list(value)[:6]) or "no keys"
            raise Reject("bad_schema", f"the column {columns[role]} is {what} ({keys})")
        messages = [*(messages or []), {"role": role, "content": given[role]}]
    if messages is None:
        raise Reject("bad_schema", f"the column {columns['messages']} is not there")
    identity = {"id": given["id"]} if "id" in columns else {}
    return {**rest, **identity, "messages": messages}


def _system(rest: Record) -> list[Message]:
    """The system messages that columns hold."""
    found = [rest.pop(key) for key in _SYSTEM if key in rest and (rest[key] is None or isinstance(rest[key], str))]
    return [{"role": "system", "content": text} for text in dict.fromkeys(found) if text]


def _joined(messages: list[Message]) -> list[Message]:
    """The messages with system messages in a row as one."""
    joined: list[Message] = []
    for message in messages:
        if message["role"] == "system" and joined and joined[-1]["role"] == "system":
            texts = [text for text in (joined[-1]["content"], message["content"]) if text]
            joined[-1] = {**message, **joined[-1], "content": "\n\n".join(dict.fromkeys(texts))}
        else:
            joined.append(message)
    return joined


def _refuse_media(rest: Record, messages: list[Message]) -> None:
    for key in _MEDIA:
        if rest.get(key):
            mark = f"<{key.removesuffix('s')}>"
            place = next((place for place, message in enumerate(messages) if mark in message["content"]), None)
            if place is not None:
                raise Reject("media", f"messages[{place}] shows what {key} holds: {mark}")


def _identity(rest: Record) -> str | None:
    """The id of an object, as text."""
    if type(rest.get("id")) is str and rest["id"]:  # the usual case
        return str(rest.pop("id"))
    found = [key for key in _IDS if rest.get(key) not in (None, "")]
    if not found:
        for key in _IDS:
            rest.pop(key, None)
        return None
    given = rest.pop(found[0])
    rest.pop("id", None)
    if isinstance(given, dict) and len(given) == 1 and "$oid" in given:  # MongoDB's export
        given = given["$oid"]
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def flaw(record: Record) -> str | None:
    """Why a record must not be written, if so. In FastChat's shape a role may be any: its tools judge it."""
    if type(record.get("id")) is not str:
        return "the id is not a text"
    messages, role, content = record.get("messages"), "role", "content"
    if messages is None:
        messages, role, content = record.get("conversations"), "from", "value"
    if type(messages) is not list:
        return "the messages are not a list"
    try:  # the usual case, in a third of the time
        for message in messages:
            if type(message[content]) is not str or (message[role] not in _WRITTEN and role == "role"):
                break
        else:
            return None
    except (KeyError, TypeError):
        pass
    for place, message in enumerate(messages):
        if type(message) is not dict or type(message.get(content)) is not str:
            return f"messages[{place}] has no text"
        if message.get(role) not in _WRITTEN and role == "role":
            return f"messages[{place}] has no known role"
    return None


_WRITTEN = ("user", "assistant", "system")  # compared, not hashed: a wrong role may be anything


def content_id(messages: list[Message]) -> str:
    """32 hexadecimal digits that depend on the roles and texts alone (BLAKE2b, 128 bits)."""
    import hashlib

    import orjson

    canonical = orjson.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def text_key(messages: list[Message], texts: bytes | None = None) -> int:
    """128 bits that depend on the roles and on the texts as `bare` returns them (SHA-256): equal for exact duplicates.

    `texts` are the texts in UTF-8 joined by \\xff, if the caller has them.
    """
    import hashlib

    contents = [message["content"] for message in messages]
    stripped = [content.strip(_EDGES) for content in contents]
    if texts is None or stripped != contents or b"\r" in texts:
        texts = b"\xff".join([bare(content) for content in contents])
    digest = hashlib.sha256(texts)  # processors have it: twice as quick as BLAKE2b
    digest.update("\0".join(["", *[message["role"] for message in messages]]).encode())
    return int.from_bytes(digest.digest()[:16])


_EDGES = " \t\r\n"


def bare(text: str) -> bytes:
    """A text in UTF-8, stripped of white space at its ends, with Unix line ends."""
    return text.strip(_EDGES).replace("\r\n", "\n").encode("utf-8", "surrogatepass")


def formatted(record: Record, format: str) -> Record:
    """The record in the shape that --format names."""
    return to_sharegpt(record) if format == "sharegpt" else record


def to_sharegpt(record: Record) -> Record:
    """The record in FastChat's shape: `conversations` with `from` and `value`."""
    rest = {key: item for key, item in record.items() if key not in ("id", "messages", "conversations")}
    if rejected := preferences.of(record):
        rest["rejected"] = list(map(_sharegpt_turn, rejected))
    return {"id": record["id"], "conversations": list(map(_sharegpt_turn, record["messages"])), **rest}


def _sharegpt_turn(message: Message) -> Message:
    turn = {"from": SHAREGPT_ROLES[message["role"]], "value": message["content"]}
    if len(message) > 2:
        turn |= {key: item for key, item in message.items() if key not in ("role", "content", "from", "value")}
    return turn
