"""Records that every filter lets through, and lines as they come out of a pipe."""

from __future__ import annotations

import os
import select

QUESTIONS = ["What is a pipe?", "And a filter?", "Who reads it?"]


def record(number: int, size: int = 40) -> dict:
    """A distinct conversation that every filter lets through."""
    text = f"Answer number {number}: " + f"word{number} " * (size // 8)
    return {
        "id": f"c{number}",
        "messages": [
            {"role": "user", "content": f"Question {number}: {QUESTIONS[number % 3]}"},
            {"role": "assistant", "content": text.strip()},
        ],
    }


def read_line(stream, seconds: float = 30) -> bytes:
    ready, _, _ = select.select([stream], [], [], seconds)
    assert ready, "no line came"
    return os.read(stream.fileno(), 1 << 20)
