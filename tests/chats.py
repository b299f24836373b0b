"""Conversations for tests, and records as lines of JSON."""

from __future__ import annotations

import json
from typing import Any


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages from texts, the user's first."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


def shared(*texts: Any, **keys: Any) -> dict[str, Any]:
    """A conversation in the shape of ShareGPT: question, answer, question, answer..."""
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {**keys, "conversations": turns}


def jsonl(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
