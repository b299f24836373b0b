"""Reading the stored replies of published judgments again: the Vicuna blog's reviews, MT-Bench's judgments.

Their judges were asked for other forms than those of `vtools judge`, and kept to them loosely: several forms are read,
nothing is guessed.
"""

import re
from collections.abc import Callable, Iterable

from vtools.process import Failure
from vtools.records.jsonl import Record

LOWEST, HIGHEST = 0.0, 10.0
NUMBER = r"(\d+(?:\.\d+)?)"
OUT_OF_TEN = r"(?:[^\S\n]*/[^\S\n]*10)?"
TWO = rf"{NUMBER}{OUT_OF_TEN}[^\S\n]*[,;\s][^\S\n]*{NUMBER}{OUT_OF_TEN}"
FIRST_LINE = re.compile(rf"\W*{TWO}\W*")
TUPLE = re.compile(rf"\bscores?\b[^\n()]{{0,80}}\(\s*{TWO}\s*\)", re.IGNORECASE)
RATING = re.compile(rf"\[\[\s*{NUMBER}{OUT_OF_TEN}\s*\]\]")
LETTER = re.compile(r"\[\[\s*([ABC])\s*\]\]")
REMARK = r"(?:\([A-Za-z][^\n]*\))?"  # in words: what begins with a digit goes on with the number
SIDE = rf"[^\S\n]*\**Assistant {{}}\**:\**[^\S\n]*{NUMBER}{OUT_OF_TEN}\**[^\S\n]*{REMARK}\.?[^\S\n]*(?:\n|$)"
HEADING = r"\b(?:scores?|ratings?|tuple)\b[^\n]{0,80}:[\s*]*\n"
LABELLED = re.compile(rf"{HEADING}{SIDE.format(1)}\s*{SIDE.format(2)}", re.IGNORECASE)


def scores(reply: str) -> tuple[float, float] | None:
    """The scores of Assistant 1 and 2 in a review of the Vicuna blog, or None if they cannot be told.

    On the first line; else, as the blog's mathematics prompt has them at the end, the last of `(8, 9)` beside the word
    score and of two labelled lines under a heading, provided that only one of these forms is there.
    """
    first = next((line for line in reply.splitlines() if line.strip()), "")
    if match := FIRST_LINE.fullmatch(first.strip()):
        return _both(match.groups())
    found = {each for pattern in (LABELLED, TUPLE) for each in pattern.findall(reply)}
    return _both(found.pop()) if len(found) == 1 else None


def rating(reply: str) -> float | None:
    """The last `[[N]]` of a reply, or None if there is none or it is not from 0 to 10."""
    found = RATING.findall(reply)
    return _in_range(found[-1]) if found else None


def letter(reply: str) -> str | None:
    """The `[[A]]`, `[[B]]` or `[[C]]` of a reply, or None if it has none or different ones."""
    found = set(LETTER.findall(reply))
    return found.pop() if len(found) == 1 else None


def blog(record: Record) -> Record:
    """A review of the Vicuna blog, with the scores that its text says; -1 where they cannot be told. Raises Failure."""
    if "score" not in record or "verdict" in record:
        raise Failure(f"not a review of the Vicuna blog ({', '.join(list(record)[:6])})")
    return {**record, "score": list(scores(_text(record, "text")) or (-1, -1))}


def mtbench(record: Record) -> Record:
    """A judgment of MT-Bench, of a pair or of one answer, with the verdict that its text says. Raises Failure."""
    if "judgment" in record:
        found = rating(_text(record, "judgment"))
        return {**record, "score": -1 if found is None else found}
    read = {}
    for game, order in (("g1", ("model_1", "model_2")), ("g2", ("model_2", "model_1"))):
        meanings = {"A": order[0], "B": order[1], "C": "tie"}
        read[f"{game}_winner"] = meanings.get(letter(_text(record, f"{game}_judgment")) or "", "error")
    return {**record, **read}


STYLES: dict[str, Callable[[Record], Record]] = {"blog": blog, "mtbench": mtbench}


def _text(record: Record, name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise Failure(f"no {name} to read again ({', '.join(list(record)[:6])})")
    return text


def _both(found: Iterable[str]) -> tuple[float, float] | None:
    first, second = map(_in_range, found)
    return None if first is None or second is None else (first, second)


def _in_range(value: str) -> float | None:
    return float(value) if LOWEST <= float(value) <= HIGHEST else None
