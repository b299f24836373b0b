"""From a judge's reply to two scores or a verdict: several forms are read, nothing is guessed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER = r"(\d+(?:\.\d+)?)"
OUT_OF_TEN = r"(?:\s*/\s*10)?"
NAME = r"\b(?:assistant|answer|response|model)\s*#?"
# `\W` without line ends and brackets: what may separate a label and its number (a colon, stars, a dash).
GAP = r"[^\w\n\[\]()]{0,6}"
LETTERS = {"A": "a", "B": "b", "C": "tie"}
LOWEST, HIGHEST = 1.0, 10.0

TWO = rf"{NUMBER}{OUT_OF_TEN}\s*[,;\s]\s*{NUMBER}{OUT_OF_TEN}"
RATING = re.compile(rf"\[\[\s*{NUMBER}{OUT_OF_TEN}\s*\]\]")
TWO_RATINGS = re.compile(rf"\[\[\s*{TWO}\s*\]\]")
LETTER = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
FIRST_LINE = re.compile(rf"\W*{TWO}\W*")
TUPLE = re.compile(rf"\bscores?\b[^\n()]{{0,80}}\(\s*{TWO}\s*\)", re.IGNORECASE)
BRACKETED = [re.compile(rf"{NAME}{side}{GAP}(\[\[[^\n\]]*\]\])", re.IGNORECASE) for side in (1, 2)]
# A number that starts a sum is not a score: only the end of the line, a full stop or words may follow it.
LABELLED = [
    re.compile(
        rf"{NAME}{side}{GAP}(?:score{GAP})?\s?{NUMBER}{OUT_OF_TEN}\**[^\S\n]*(?=$|[.,;](?!\d)|\s\([A-Za-z])",
        re.IGNORECASE | re.MULTILINE,
    )
    for side in (1, 2)
]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says: scores of Assistant 1 and 2, who is better (`a` is Assistant 1), and its form."""

    scores: tuple[float, float] | None
    verdict: str | None
    parse: str


NOTHING = Reading(None, None, "none")


def read(reply: str, cut: bool = False) -> Reading:
    """Read a reply. The last of several verdicts counts; a score out of range makes the reply unreadable.

    In a reply that was `cut` off, only scores on the first line count.
    """
    if not cut:
        if all(pattern.search(reply) for pattern in BRACKETED):
            return _scored([rating(pattern.findall(reply)[-1]) for pattern in BRACKETED], "brackets")
        if found := TWO_RATINGS.findall(reply):
            return _scored(found[-1], "brackets")
        if found := LETTER.findall(reply):
            return Reading(None, LETTERS[found[-1].upper()], "letter")
    first = next((line for line in reply.splitlines() if line.strip()), "")
    if match := FIRST_LINE.fullmatch(first.strip()):
        return _scored(match.groups(), "first-line")
    if not cut:
        sides = [pattern.findall(reply) for pattern in LABELLED]
        if sides[0] and sides[1]:
            return _scored([side[-1] for side in sides], "labelled")
        if found := TUPLE.findall(reply):
            return _scored(found[-1], "tuple")
    return NOTHING


def rating(text: str) -> float | None:
    """The last `[[N]]` of a text, or None if there is none or it is not from 1 to 10."""
    found = RATING.findall(text)
    return _in_range(found[-1]) if found else None


def verdict(scores: tuple[float, float]) -> str:
    """Who is better: `a`, `b` or `tie`."""
    first, second = scores
    return "tie" if first == second else "a" if first > second else "b"


def _scored(found: Iterable[str | float | None], parse: str) -> Reading:
    first, second = map(_in_range, found)
    if first is None or second is None:
        return NOTHING
    return Reading((first, second), verdict((first, second)), parse)


def _in_range(value: str | float | None) -> float | None:
    return float(value) if value is not None and LOWEST <= float(value) <= HIGHEST else None
