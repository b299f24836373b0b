"""The record: the shapes that are read and written, roles, and content ids."""

from typing import Any

from vtools.records.jsonl import Record, Reject

Message = dict[str, Any]  # `role`, `content`, and any other keys of the input

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
_WEIGHTS = ("weight", "loss_weight", "train", "training", "loss")
SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def read(value: Record) -> Record:
    """Turn an object of any known shape into a record; other keys pass through. Raises Reject.

    Shapes: OpenAI `messages`, ShareGPT `conversations` or `items` (`from`/`value`), Alpaca
    `instruction`/`input`/`output`, `prompt`/`completion` pairs (texts or lists of messages).
    """
    rest = dict(value)
    for key in ("messages", "conversations", "conversation", "items"):
        turns = rest.get(key)
        if turns is None:  # tables of mixed shapes have null columns
            rest.pop(key, None)
            continue
        if isinstance(turns, list):
            del rest[key]
            messages = _messages(turns, key)
            break
        raise Reject("bad_schema", f"{key} is not a list")
    else:
        if "instruction" in rest and "output" in rest:
            question = _text(rest.pop("instruction"), "instruction")
            given = _text(rest.pop("input", None) or "", "input")
            messages = _pair(question + (f"\n\n{given}" if given else ""), rest.pop("output"), "output")
        elif "prompt" in rest and "completion" in rest:
            prompt, completion = rest.pop("prompt"), rest.pop("completion")
            if isinstance(prompt, list) and isinstance(completion, list):
                messages = _messages([*prompt, *completion], "prompt")
            else:
                messages = _pair(_text(prompt, "prompt"), completion, "completion")
        else:
            keys = ", ".join(list(value)[:6]) or "no keys"
            raise Reject(
                "bad_schema", f"no messages, conversations, items, instruction/output or prompt/completion ({keys})"
            )
    identity = rest.pop("id", None)
    notes = rest.pop("vtools", None)
    if identity is None or identity == "":
        identity = content_id(messages)
    record: Record = {"id": identity if isinstance(identity, str) else str(identity), "messages": messages, **rest}
    if notes is not None:
        record["vtools"] = notes
    return record


def shape(value: Record) -> str:
    """The name of an object's shape, for `source.kind`."""
    kinds = {"messages": "messages", "conversations": "sharegpt", "conversation": "messages", "items": "sharegpt"}
    for key, kind in kinds.items():
        if value.get(key) is not None:
            return kind
    return "alpaca" if "instruction" in value else "prompt-completion"


def _pair(question: str, answer: Any, where: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": _text(answer, where)}]


def _messages(turns: list[Any], name: str) -> list[Message]:
    messages = []
    for place, turn in enumerate(turns):
        if type(turn) is dict and len(turn) == 2:  # the common case: no other key, a known role, a text
            role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
            if type(role) is str and type(content) is str and role in ROLES:
                messages.append({"role": ROLES[role], "content": content})
                continue
        messages.append(_message(turn, f"{name}[{place}]"))
    return messages


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise Reject("bad_schema", f"{where} is not an object")
    rest = dict(turn)
    role, other = rest.pop("role", None), rest.pop("from", None)
    role = other if role is None else role
    names = [key for key in ("content", "value", "text") if key in rest]
    for key in sorted(names, key=lambda name: rest[name] is None):  # a null only if there is no text
        content = rest.pop(key)
        break
    else:
        raise Reject("bad_schema", f"{where} has no content")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Reject("unknown_role", f"{where}: {role!r}")
    return {"role": known, "content": _text(content, where), **rest}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
        raise Reject("bad_schema", f"{where} has a part that is not text")
    raise Reject("bad_schema", f"{where}: the text is {'null' if content is None else type(content).__name__}")


def is_trained(message: Message) -> bool:
    """Whether an answer is trained. One with a weight of 0, or `train: false`, is context for those after it."""
    return len(message) == 2 or not any([message.get(key, 1) == 0 for key in _WEIGHTS])


def content_id(messages: list[Message]) -> str:
    """32 hexadecimal digits that depend on the roles and texts alone (BLAKE2b, 128 bits)."""
    import hashlib

    import orjson

    canonical = orjson.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def text_key(messages: list[Message], texts: bytes | None = None) -> int:
    """128 bits that depend on the roles and on the texts as `bare` returns them (BLAKE2b): equal for exact duplicates.

    `texts` are the texts in UTF-8 joined by \\xff, if the caller has them.
    """
    import hashlib

    contents = [message["content"] for message in messages]
    stripped = [content.strip(_EDGES) for content in contents]
    if texts is None or stripped != contents or b"\r" in texts:
        texts = b"\xff".join([bare(content) for content in contents])
    digest = hashlib.blake2b(texts, digest_size=16)
    digest.update("\0".join(["", *[message["role"] for message in messages]]).encode())
    return int.from_bytes(digest.digest())


_EDGES = " \t\r\n"


def bare(text: str) -> bytes:
    """A text in UTF-8, stripped of white space at its ends, with Unix line ends."""
    return text.strip(_EDGES).replace("\r\n", "\n").encode("utf-8", "surrogatepass")


def formatted(record: Record, format: str) -> Record:
    """The record in the shape that --format names."""
    return to_sharegpt(record) if format == "sharegpt" else record


def to_sharegpt(record: Record) -> Record:
    """The record in FastChat's shape: `conversations` with `from` and `value`."""
    turns = [{"from": SHAREGPT_ROLES[message["role"]], "value": message["content"]} for message in record["messages"]]
    rest = {key: item for key, item in record.items() if key not in ("id", "messages")}
    return {"id": record["id"], "conversations": turns, **rest}
