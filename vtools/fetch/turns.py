"""What every source builds: messages with what belongs to them, times, and the branch of a tree of messages."""

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from vtools.records.jsonl import Record, Reject
from vtools.records.message import Message

# A number below is no time (as seconds, it is 1973); one above is in milliseconds (as seconds, it is the year 5138).
_SECONDS = (1e8, 1e11)


def message(role: str, content: str, **beside: Any) -> Message:
    """A message, and what belongs to it as far as there is any: `model`, `created_at`, `tools`, `attachments`..."""
    return {"role": role, "content": content, **{key: item for key, item in beside.items() if item}}


def record(
    identity: Any, messages: list[Message], *, title: Any = None, created: Any = None, updated: Any = None, **rest: Any
) -> Record:
    """A record; its title and times go into its `source`. Raises Reject if there are no messages."""
    if not messages:
        raise Reject("empty", "no message that the page shows")
    told = {
        "title": title if isinstance(title, str) else None,
        "created_at": when(created),
        "updated_at": when(updated),
    }
    models = [turn["model"] for turn in messages if isinstance(turn.get("model"), str)]
    if models:
        rest = {"model": models[-1]} | rest
        if len(set(models)) == 1:
            messages = [{key: item for key, item in turn.items() if key != "model"} for turn in messages]
    rest = {key: item for key, item in rest.items() if item}
    found: Record = {"messages": messages, **rest, "source": {key: item for key, item in told.items() if item}}
    return {"id": identity, **found} if isinstance(identity, str) and identity else found


def joined(messages: list[Message]) -> list[Message]:
    """The messages, answers in a row, between which a tool worked, as one."""
    whole: list[Message] = []
    for turn in messages:
        if not (whole and turn["role"] == whole[-1]["role"] == "assistant"):
            whole.append(turn)
            continue
        last = whole.pop()
        both = {**turn, **last, "content": "\n\n".join(filter(None, (last["content"], turn["content"])))}
        for key in ("tools", "attachments"):
            if key in last and key in turn:
                both[key] = list(dict.fromkeys(last[key] + turn[key]))
        if "reasoning_content" in last and "reasoning_content" in turn:
            both["reasoning_content"] = f"{last['reasoning_content']}\n\n{turn['reasoning_content']}"
        whole.append(both)
    return whole


def when(time: Any) -> str | None:
    """A time in UTC to the second, from seconds or milliseconds since 1970 or from ISO 8601; None if it is neither."""
    try:
        if isinstance(time, str):
            found = datetime.datetime.fromisoformat(time.strip())
            found = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
        elif isinstance(time, int | float) and time > _SECONDS[0]:
            found = datetime.datetime.fromtimestamp(time / (1000 if time > _SECONDS[1] else 1), datetime.UTC)
        else:
            return None
        return found.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return None


def path(parents: Mapping[str, Any], leaf: Any) -> list[str]:
    """The nodes from the root to a leaf, given each node's parent."""
    found: dict[str, None] = {}
    while isinstance(leaf, str) and leaf in parents and leaf not in found:  # a loop has no root
        found[leaf] = None
        leaf = parents[leaf]
    return list(found)[::-1]


def leaves(parents: Mapping[str, Any]) -> list[str]:
    """The nodes that are nobody's parent."""
    inner = {parent for parent in parents.values() if isinstance(parent, str)}
    return [node for node in parents if node not in inner]


def names(given: Any, *keys: str) -> list[str]:
    """The name of each object in a list, under the first of these keys that it has."""
    objects: Iterable[Any] = given if isinstance(given, list) else ()
    found = (next((one[key] for key in keys if one.get(key)), None) for one in objects if isinstance(one, dict))
    return [name for name in found if isinstance(name, str)]


def inside(value: Any, *keys: str) -> Any:
    """What is under a key of an object under a key of an object...; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
