"""One message of a conversation: its role, its text, and whether it is trained."""

from collections.abc import Mapping
from typing import Any

from vtools.records.jsonl import KINDS, Reject

Message = dict[str, Any]  # `role`, `content`, and any other keys of the input
Roles = Mapping[str, str]  # their name of a role, in lower case, to ours

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant",
    "model": "assistant", "assistant": "assistant", "ai": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_TOOLS = frozenset((
    "tool", "function", "function_call", "function-call", "function_response", "tool_call", "tool_calls",
    "tool_response", "observation", "ipython",
))  # fmt: skip
_THINKING = frozenset(("thinking", "reasoning", "thought"))
# OpenAI's fine-tuning files, axolotl's and others'.
_WEIGHTS = ("weight", "loss_weight", "train", "training", "loss")
_TEXT_PARTS = frozenset((None, "", "text", "input_text", "output_text"))
_PARTS = {
    "thinking": "thinking", "reasoning": "thinking", "redacted_thinking": "thinking",
    "tool": "tool", "function": "tool",
    "image": "media", "input_image": "media", "video": "media", "audio": "media", "input_audio": "media",
    "file": "media", "input_file": "media", "document": "media",
}  # fmt: skip


def is_trained(message: Message) -> bool:
    """Whether an answer is trained. One with a weight of 0, or `train: false`, is context for those after it."""
    return len(message) == 2 or not any([message.get(key, 1) == 0 for key in _WEIGHTS])


def messages_of(turns: list[Any], where: str, roles: Roles = ROLES) -> list[Message]:
    """The turns of a list as messages; texts without a role are the user's and the assistant's in turn. Raises Reject.

    `where` names the list in the errors.
    """
    if len(turns) > 1 and isinstance(turns[0], str) and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    messages = []
    for place, turn in enumerate(turns):
        if type(turn) is dict and len(turn) == 2:  # the common case: no other key, a known role, a text
            role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
            if type(role) is str and type(content) is str and role in roles:
                messages.append({"role": roles[role], "content": content})
                continue
        messages.append(_read(turn, f"{where}[{place}]", roles))
    return messages


def _read(turn: Any, where: str, roles: Roles) -> Message:
    if not isinstance(turn, dict):
        raise Reject("bad_schema", f"{where} is not an object")
    rest = dict(turn)
    named = _first(rest, "role", "from") or _first(rest, "sender")
    if not ("content" in rest or "value" in rest or "text" in rest):
        raise Reject("bad_schema", f"{where} has no content")
    content = _first(rest, "content", "value")
    if not content and (rest.get("text") or content is None):
        content = _first(rest, "text")
    elif not rest.get("text"):
        rest.pop("text", None)
    role = roles.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        other = named.strip().lower() if isinstance(named, str) else ""
        reason = "tool" if other in _TOOLS else "thinking" if other in _THINKING else "unknown_role"
        raise Reject(reason, f"{where}: {named!r}" if named else f"{where} has no role")
    if not content and (rest.get("tool_calls") or rest.get("function_call")):
        raise Reject("tool", f"{where} is a call of a tool")
    return {"role": role, "content": text_of(content, where), **rest}


def _first(rest: Message, *spellings: str) -> Any:
    """The value under one of these keys, which are all removed; a null or empty one only if there is no other."""
    found = [rest.pop(key) for key in spellings if key in rest]
    given = [value for value in found if value is not None]
    return next(filter(None, given), given[0] if given else None)


def text_of(content: Any, where: str) -> str:
    """A text, or the text parts of a list, each on a line of its own. Raises Reject, also for parts of other types."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = content.get("parts") or [content]
    if isinstance(content, list):
        return "\n".join(filter(None, [_part(part, where) for part in content]))
    raise Reject("bad_schema", f"{where}: the text is {KINDS[type(content)]}")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal":
        part = {"text": part.get("refusal") or part.get("text")}
    elif not (kind is None or isinstance(kind, str)):
        raise Reject("bad_schema", f"{where} has a part whose type is {KINDS[type(kind)]}")
    elif kind not in _TEXT_PARTS:
        known = str(kind).removesuffix("_url")
        reason = _PARTS.get(known) or _PARTS.get(known.split("_")[0]) or "bad_schema"
        raise Reject(reason, f"{where} has a part of type {kind}")
    text = None
    if isinstance(part, dict):
        text = next((part[key] for key in ("text", "value", "content") if part.get(key)), part.get("text"))
    if not isinstance(text, str):
        raise Reject("bad_schema", f"{where} has a part that is not text")
    return text
