"""ChatGPT's own export, the ZIP or its conversations.json, and what ChatGPT's share pages hold.

    [{"id", "conversation_id", "title", "create_time", "update_time", "current_node",
      "mapping": {NODE: {"id", "parent", "children", "message": MESSAGE or null}}}]
    MESSAGE: {"author": {"role", "name"}, "content": {"content_type", "parts" or "text"}, "recipient", "create_time",
              "weight", "metadata": {"model_slug", "attachments", "is_visually_hidden_from_conversation", ...}}

`mapping` is a tree, as a question can be edited and an answer regenerated: the page shows the path from `current_node`
to the root. A share page has that path as `linear_conversation`. Tools are named beside the answer that they served,
attachments beside their question, thoughts are apart. Times are seconds since 1970.
"""

import re
from typing import Any

from vtools.fetch import turns
from vtools.fetch.turns import inside
from vtools.records.jsonl import Record, Reject
from vtools.records.message import Message

NAME = "chatgpt"
KEYS = ("mapping", "linear_conversation")
# A citation as ChatGPT writes it into its text; the page shows a link instead.
_CITATION = re.compile("\ue200[^\ue200\ue201]*+\ue201|【[^】]{0,80}†[^】]{0,80}】")


def sniff(value: Record) -> bool:
    return isinstance(value.get("mapping"), dict) or isinstance(value.get("linear_conversation"), list)


def read(value: Record, branches: str) -> list[Record]:
    identity = value.get("conversation_id") or value.get("id")
    nodes, paths = _paths(value, branches)
    found: dict[tuple[str, ...], Record] = {}
    for leaf, way in paths:
        shown = tuple(node for node in way if _is_shown(inside(nodes[node], "message")))
        if shown in found or (not shown and len(paths) > 1):  # branches that differ in what is hidden
            continue
        messages = _messages([inside(nodes[node], "message") for node in way])
        found[shown] = turns.record(
            f"{identity}:{leaf}" if branches == "all" and isinstance(identity, str) else identity, messages,
            title=value.get("title"), created=value.get("create_time"), updated=value.get("update_time"),
        )  # fmt: skip
    return list(found.values()) or [turns.record(identity, [])]


def _paths(value: Record, branches: str) -> tuple[dict[str, Any], list[tuple[str, list[str]]]]:
    """The nodes, and each leaf that is wanted with its path."""
    nodes, line = value.get("mapping"), value.get("linear_conversation")
    if isinstance(line, list) and not (branches == "all" and isinstance(nodes, dict)):
        nodes = {str(place): node for place, node in enumerate(line)}
        return nodes, [("", list(nodes))]
    nodes = nodes if isinstance(nodes, dict) else {}
    parents = {name: inside(node, "parent") for name, node in nodes.items()}
    last = turns.leaves(parents)
    if branches == "all":
        return nodes, [(leaf, turns.path(parents, leaf)) for leaf in last]
    leaf = value.get("current_node")
    if not isinstance(leaf, str) or leaf not in nodes:
        leaf = max(last, key=lambda name: _number(inside(nodes[name], "message", "create_time")), default="")
    return nodes, [(leaf, turns.path(parents, leaf))]


def _number(time: Any) -> float:
    return time if isinstance(time, int | float) else 0


def _is_shown(message: Any) -> bool:
    """Whether the page shows a message as the user's or the assistant's."""
    role, recipient = inside(message, "author", "role"), inside(message, "recipient")
    hidden = inside(message, "metadata", "is_visually_hidden_from_conversation") or inside(message, "weight") == 0
    kind = inside(message, "content", "content_type")
    if role in ("user", "assistant") and not hidden:
        return recipient in (None, "all") and kind not in ("user_editable_context", "thoughts", "reasoning_recap")
    return False


def _messages(path: list[Any]) -> list[Message]:
    messages: list[Message] = []
    thoughts: list[str] = []
    tools: list[str] = []
    for message in [*path, None]:
        role = inside(message, "author", "role")
        if (thoughts or tools) and (message is None or (role == "user" and _is_shown(message))):
            messages.append(_answer("", None, thoughts, tools))  # all that came was a picture, or nothing
            thoughts, tools = [], []
        if _is_shown(message):
            text = _text(message)
            if role == "user":
                files = turns.names(inside(message, "metadata", "attachments"), "name", "id") or _media(message)
                created = turns.when(inside(message, "create_time"))
                messages.append(turns.message("user", text, created_at=created, attachments=files))
            else:
                messages.append(_answer(text, message, thoughts, tools))
                thoughts, tools = [], []
        elif role == "assistant" and inside(message, "content", "content_type") == "thoughts":
            given = inside(message, "content", "thoughts")
            for thought in given if isinstance(given, list) else []:
                said = [inside(thought, key) for key in ("summary", "content")]
                thoughts.append("\n".join(text for text in said if isinstance(text, str) and text))
        elif role == "assistant" and isinstance(to := inside(message, "recipient"), str) and to != "all":
            tools.append(to)
        elif role == "tool" and isinstance(name := inside(message, "author", "name"), str):
            tools.append(name)
        elif role not in ("user", "assistant", "system", "tool", None):
            raise Reject("unknown_role", f"mapping: {role!r}")
    return turns.joined(messages)


def _answer(text: str, message: Any, thoughts: list[str], tools: list[str]) -> Message:
    model = inside(message, "metadata", "model_slug")
    return turns.message(
        "assistant", text, created_at=turns.when(inside(message, "create_time")),
        model=model if isinstance(model, str) else None, reasoning_content="\n\n".join(filter(None, thoughts)),
        tools=list(dict.fromkeys(tools)),
    )  # fmt: skip


def _text(message: Any) -> str:
    content = inside(message, "content")
    parts = inside(content, "parts")
    if isinstance(parts, list):
        spoken = [inside(part, "text") if isinstance(part, dict) else part for part in parts]
        text = "\n".join(part for part in spoken if isinstance(part, str) and part)
    else:
        text = inside(content, "text")
        text = text if isinstance(text, str) else ""
        if inside(content, "content_type") == "code" and text:
            language = inside(content, "language")
            text = f"```{language if isinstance(language, str) and language != 'unknown' else ''}\n{text}\n```"
    if inside(message, "author", "role") == "assistant" and ("\ue200" in text or "†" in text):
        links = _links(inside(message, "metadata", "content_references"))
        text = _CITATION.sub(lambda found: links.get(found[0], ""), text)
    return text


def _links(references: Any) -> dict[str, str]:
    """What the page shows in place of each citation."""
    given = references if isinstance(references, list) else []
    pairs = [(inside(one, "matched_text"), inside(one, "alt")) for one in given]
    return {mark: link for mark, link in pairs if isinstance(mark, str) and isinstance(link, str)}


def _media(message: Any) -> list[str]:
    """The kinds of the parts of a message that are no text."""
    parts = inside(message, "content", "parts")
    return turns.names(
        [part for part in parts if not isinstance(inside(part, "text"), str)] if isinstance(parts, list) else [],
        "content_type",
    )
