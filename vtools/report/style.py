"""The length and the layout of answers, as differences of two that may move a judge."""

import math
import re
from collections.abc import Sequence
from typing import Any

from vtools.report.units import Unit

LAYOUT = {
    "headings": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "list items": re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.MULTILINE),
    "bold words": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}


def games(every: Sequence[Any], units: Sequence[Unit]) -> tuple[list[str], list[Any]]:
    """The games with the differences of length, and of layout where all answers are known, b's more than a's; each unit
    is what the game beside it is of.

    Each is the difference divided by the sum, as in the style control of the Chatbot Arena, and then by its standard
    deviation. No names and no games where a length is missing, or nothing differs.
    """
    if not units or not all(unit.lengths for unit in units):
        return [], []
    names = ["characters", *(LAYOUT if all(unit.answers for unit in units) else ())]
    columns = {name: [_difference(unit, name) for unit in units] for name in names}
    scales = {name: math.sqrt(sum(value * value for value in own) / len(own)) for name, own in columns.items()}
    names = [name for name in names if scales[name] > 1e-9]
    rows = zip(*([value / scales[name] for value in columns[name]] for name in names), strict=True)
    return names, [game._replace(effects=row) for game, row in zip(every, rows, strict=True)] if names else []


def _difference(unit: Unit, name: str) -> float:
    if name == "characters":
        a, b = unit.lengths or (0.0, 0.0)
    else:
        texts = ["\n".join(turns) for turns in unit.answers or ((), ())]
        a, b = (float(len(LAYOUT[name].findall(text))) for text in texts)
    return (b - a) / (a + b) if a + b else 0.0
