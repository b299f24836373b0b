"""JSON values that take several lines, several values on one line, and lists that are conversations."""

import json
import re
from collections.abc import Iterator
from typing import Any

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SPACE = b" \t\r\n"


class Brackets:
    """The brackets of a value that are open after the lines seen so far."""

    def __init__(self) -> None:
        self.open = bytearray()
        self.last = b""  # byte that is not white space

    def ends(self, line: bytes) -> Iterator[int]:
        """Go through one more line: the positions at which a value ends."""
        for token in _TOKEN.finditer(line):
            kind = token[0][:1]
            if kind in b"[{":
                self.open += kind
            elif kind in b"]}" and self.open:
                del self.open[-1]
                if not self.open:
                    yield token.end()
        self.last = line.rstrip(_SPACE)[-1:] or self.last

    def are_broken_by(self, line: bytes) -> bool:
        """Whether this next line begins a new value because no value of the open one may begin with it."""
        if not self.open or line.lstrip(_SPACE)[:1] not in (b"{", b"["):
            return False
        return self.last not in ((b",", b"[") if self.open.endswith(b"[") else (b":",))


def goes_on(line: bytes, following: bytes) -> bool:
    """Whether a line with open brackets is the beginning of a value that the following line continues."""
    return line.rstrip(_SPACE)[-1:] in b"{[,:" or following.lstrip(_SPACE)[:1] in b"}],:"


def are_several(line: bytes, ends: list[int]) -> bool:
    """Whether a line of whole values holds more than one, or ends in a comma."""
    rest = line[ends[0] :].strip(_SPACE) if ends else b""
    return rest == b"," or rest.lstrip(b"," + _SPACE)[:1] in (b"{", b"[")


def values_in(line: bytes) -> tuple[list[int], bool]:
    """The ends of the values on a line, and whether another is open at its end."""
    brackets = Brackets()
    return list(brackets.ends(line)), bool(brackets.open)


_OTHER_ROW = frozenset(("messages", "conversations", "prompt", "conversation_id", "parent_id", "message_tree_id"))


def is_turn(value: Any) -> bool:
    """Whether an object is one message, so that a list of such is a conversation."""
    if not isinstance(value, dict) or not _OTHER_ROW.isdisjoint(value):
        return False
    return ("role" in value or "from" in value) and ("content" in value or "value" in value)


def is_turn_text(raw: bytes) -> bool:
    """`is_turn` of an object that is not parsed yet."""
    try:
        return raw.startswith(b"{") and is_turn(json.loads(raw))
    except (ValueError, RecursionError):
        return False
