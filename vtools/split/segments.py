"""Cutting one conversation into segments: greedy over turn pairs, with the template's own token counts."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from vtools import conversation, jsonl, model
from vtools import template as templates
from vtools.jsonl import Record, Reject

Messages = list[dict[str, Any]]


@lru_cache(maxsize=1)
def renderer(reference: str, name: str | None) -> templates.Template:
    """The template that counts, loaded once a process."""
    return templates.load(name, model.tokenizer(reference))


def split(record: Record, *, reference: str, template: str | None, limit: int) -> Record | list[Record] | Reject:
    """Cut a conversation into segments of at most `limit` tokens between its turn pairs, greedily.

    Concatenated, the segments' messages are the conversation's; each repeats the system message. A pair that cannot
    fit stands alone. Ids are ID_START as FastChat's (split_long_conversation.py), START being the index of the
    segment's first message among those after the system message.
    """
    record = conversation.read(record)
    render = renderer(reference, template)
    system, pairs = _pairs(record["messages"])
    if not pairs:
        return Reject("empty", "no turns")

    def count(start: int, end: int) -> int:
        return len(render.render(system + [message for pair in pairs[start:end] for message in pair]).ids)

    whole = count(0, len(pairs))
    if whole <= limit:  # also finds what the template cannot render, before anything is cut
        return jsonl.stamp(record, "split")
    cuts = [0]
    tokens = [whole if len(pairs) == 1 else count(0, 1)]
    for end in range(2, len(pairs) + 1):
        longer = count(cuts[-1], end)
        if longer <= limit:
            tokens[-1] = longer
        else:
            cuts.append(end - 1)
            tokens.append(count(end - 1, end))
    segments = []
    for index, (start, end) in enumerate(zip(cuts, [*cuts[1:], len(pairs)], strict=True)):
        segment = record | {
            "id": record["id"] if len(cuts) == 1 else f"{record['id']}_{sum(map(len, pairs[:start]))}",
            "messages": system + [message for pair in pairs[start:end] for message in pair],
            "segment": {"of": record["id"], "index": index, "count": len(cuts), "tokens": tokens[index]},
        }
        segments.append(jsonl.stamp(segment, "split"))
    return segments


def _pairs(messages: Messages) -> tuple[Messages, list[Messages]]:
    """The leading system message, and the turns grouped so that each group starts with a user's turn."""
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    pairs: list[Messages] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not pairs:
            pairs.append([])
        pairs[-1].append(message)
    return system, pairs


def base_id(record: Record) -> str:
    """The id of the conversation that a segment was cut from; ShareGPT V3's ids are segments already (QWJhYvA_12)."""
    segment = record.get("segment")
    base = segment.get("of") if isinstance(segment, dict) else None
    identity = base if isinstance(base, str) else record["id"]
    sharegpt = re.fullmatch(r"([A-Za-z0-9]{7})_\d+", identity)
    return sharegpt[1] if sharegpt else identity


def held_out(base: str, share: float) -> bool:
    """Whether a conversation is held out: by a hash of its base id, so that a rerun gives the same sides."""
    digest = hashlib.blake2b(base.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
