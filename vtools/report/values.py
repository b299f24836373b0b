"""Checked values of a record: each is what its format says, or the error says what is wrong."""

import math
from collections.abc import Collection
from typing import Any, TypeGuard

from vtools.records.jsonl import KINDS, Record
from vtools.records.question import spelled


class Wrong(Exception):
    """A value that its format does not allow, in words."""


def text(record: Record, name: str) -> str:
    """A text that is there and not empty. Raises Wrong."""
    value = record.get(name)
    if isinstance(value, str) and value.strip():
        return value
    raise Wrong(f"{name} is {shown(value)}, not a text")


def identity(record: Record, *names: str) -> str:
    """The id under the first of these names that is there, as text; a number is its digits. Raises Wrong."""
    for name in names:
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise Wrong(f"{name} is {shown(value)}, not an id")
        if value is not None and (found := spelled(value)):
            return found
    raise Wrong(f"no {' or '.join(names)}")


def number(record: Record, name: str, lowest: float = -math.inf, highest: float = math.inf) -> float:
    """A finite number in a range. Raises Wrong."""
    value = record.get(name)
    if is_number(value) and lowest <= float(value) <= highest:
        return float(value)
    limits = "" if math.isinf(lowest) and math.isinf(highest) else f" from {lowest:g} to {highest:g}"
    raise Wrong(f"{name} is {shown(value)}, not a number{limits}")


def whole(record: Record, name: str, default: int | None = None) -> int | None:
    """A whole number from 0, the default if it is absent or null. Raises Wrong."""
    value = record.get(name)
    if value is None:
        return default
    if is_number(value) and value == int(value) and value >= 0:
        return int(value)
    raise Wrong(f"{name} is {shown(value)}, not a whole number")


def two(record: Record, name: str) -> tuple[float, float] | None:
    """Two numbers, None if it is absent or null. Raises Wrong."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        return float(value[0]), float(value[1])
    raise Wrong(f"{name} is {shown(value)}, not two numbers")


def one_of(record: Record, name: str, allowed: Collection[str]) -> str:
    """One of a few texts. Raises Wrong."""
    value = record.get(name)
    if isinstance(value, str) and value in allowed:
        return value
    raise Wrong(f"{name} is {shown(value)}, not {' or '.join(map(repr, allowed))}")


def optional(record: Record, name: str) -> str | None:
    """A text, None if it is absent, null or empty. Raises Wrong."""
    value = record.get(name)
    if value is None or isinstance(value, str):
        return value or None
    raise Wrong(f"{name} is {shown(value)}, not a text")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Any) -> str:
    """A value in a message: texts and numbers as they are, the beginning of long ones, and what others are."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        written = repr(value)
        return written if len(written) <= 40 else f"{written[:37]}..."
    return "missing" if value is None else KINDS.get(type(value), "something else")
