"""LM Studio's conversations, the files *.conversation.json in its folder `conversations`.

    {"name", "createdAt": milliseconds, "systemPrompt", "messages": [{"currentlySelected": 0, "versions": [
       {"role": "user", "type": "singleStep", "content": [{"type": "text", "text"}, {"type": "file", ...}]},
       {"role": "assistant", "type": "multiStep", "senderInfo": {"senderName": MODEL}, "steps": [
          {"type": "contentBlock", "style": {"type": "thinking"}, "content": [{"type": "text", "text"}]}, ...]}]}]}

Each message has one version for each time it was edited or regenerated; the page shows the selected ones.
"""

from typing import Any

from vtools.fetch import turns
from vtools.fetch.turns import inside
from vtools.records.jsonl import Record, Reject
from vtools.records.message import Message

NAME = "lm-studio"
KEYS = ("systemPrompt", "createdAt", "lastUsedModel", "perChatPredictionConfig", "usePerChatPredictionConfig")


def sniff(value: Record) -> bool:
    messages = value.get("messages")
    return isinstance(messages, list) and bool(messages) and inside(messages[0], "versions") is not None


def read(value: Record, branches: str) -> list[Record]:
    system = value.get("systemPrompt")
    messages = [turns.message("system", system)] if isinstance(system, str) and system else []
    for turn in value["messages"]:
        versions, chosen = inside(turn, "versions"), inside(turn, "currentlySelected") or 0
        try:
            messages.append(_message(versions[chosen]))
        except (TypeError, IndexError, KeyError):
            raise Reject("bad_schema", f"messages: no version {chosen!r}") from None
    return [turns.record(value.get("id"), messages, title=value.get("name"), created=value.get("createdAt"))]


def _message(version: Any) -> Message:
    role = inside(version, "role")
    if role not in ("user", "assistant", "system"):
        raise Reject("unknown_role", f"versions: {role!r}")
    texts: list[str] = []
    thoughts: list[str] = []
    files: list[str] = []
    tools: list[str] = []
    for step in version.get("steps") or [version]:
        thinking = inside(step, "style", "type") == "thinking"
        content = inside(step, "content")
        for part in content if isinstance(content, list) else []:
            kind, text = inside(part, "type"), inside(part, "text")
            if isinstance(text, str) and kind == "text":
                (thoughts if thinking else texts).append(text)
            elif kind == "file":
                files += turns.names([part], "fileName", "name", "fileIdentifier")
            elif isinstance(name := inside(part, "name") or inside(part, "toolCallRequest", "name"), str):
                tools.append(name)
    model = inside(version, "senderInfo", "senderName")
    return turns.message(
        role, "".join(texts), model=model if isinstance(model, str) else None, attachments=files,
        reasoning_content="".join(thoughts), tools=list(dict.fromkeys(tools)),
    )  # fmt: skip
