"""Cutting an answer that is too long: where a text may be cut, and how much fits."""

import unicodedata
from bisect import bisect_left
from collections.abc import Callable

from vtools.records import markdown
from vtools.records.markdown import Block

JOINER = "\u200d"
LONGEST = 32  # code points of a character; more are no longer kept together
Count = Callable[[str], int]  # tokens of a segment with this text (not blank) as its answer


def truncate(text: str, count: Count, limit: int) -> str:
    """The longest beginning that fits a segment of `limit` tokens, up to the end of a word; "" if none fits."""
    end = _reach(text, 0, count, limit)
    while end > 0:
        if end < len(text) and not text[end].isspace():
            end = _last(text, (" ", "\n", "\t"), end // 2, end) or _whole(text, 0, end)
        part = text[:end].rstrip()
        if not part or count(part) <= limit:
            return part
        end = len(part) - 1
    return ""


def parts(text: str, count: Count, limit: int) -> list[str]:
    """The text in parts that each fit a segment of `limit` tokens; none if that is impossible.

    Cuts are between paragraphs, else lines, else words, in the second half of what fits; inside a fenced code block
    only if the block is longer than a part.
    """
    blocks = list(markdown.fences(text))
    made = []
    start, last = 0, len(text.rstrip())
    while start < len(text):
        end = _reach(text, start, count, limit)
        if end < len(text):
            end = min(end, last - 1)  # the rest must not be only white space
            cut = _cut(text, start, end, blocks)
            if text[start:cut].strip():
                end = cut
            while text[start:end].strip() and count(text[start:end]) > limit:
                end = _cut(text, start, end - 1, blocks)
        if not text[start:end].strip():
            return []
        made.append(text[start:end])
        start = end
    return made


def _reach(text: str, start: int, count: Count, limit: int) -> int:
    """How far a part from `start` may go: it fits, and hardly any more would. `start` if nothing fits.

    Found by interpolation, which looks at a small multiple of what fits, however long the text is.
    """
    low, below = start, 0
    high, above = len(text) + 1, None
    end = min(start + 4 * limit, len(text))
    for _ in range(24):
        part = text[start:end]
        tokens = count(part) if part.strip() else 0
        if tokens <= limit:
            low, below = end, tokens
            if low == len(text) or low + 1 == high:
                break
        else:
            high, above = end, tokens
        if above is None:
            end = min(start + 2 * (end - start), len(text))
        elif high - low <= max(1, min(8, (low - start) // 16)) or (low > start and below == limit):
            break
        else:
            end = low + (high - low) * (limit - below) // (above - below)
            end = max(low + 1, min(end, high - 1))
    return low


def _cut(text: str, start: int, end: int, blocks: list[Block]) -> int:
    """The best place to cut in (start, end]."""
    half = start + (end - start) // 2
    block = _around(blocks, end)
    if block is not None:
        begin, after = block
        if begin > start and after - begin <= end - start:
            return begin  # the whole block fits into the next part
        return _last(text, ("\n",), half, end) or _last(text, (" ", "\t"), half, end) or _whole(text, start, end)
    for mark in ("\n\n", "\n"):
        high = end
        while cut := _last(text, (mark,), half, high):
            inside = _around(blocks, cut)
            if inside is None:
                return cut
            high = inside[0]
    return _last(text, (" ", "\t"), half, end) or _whole(text, start, end)


def _last(text: str, marks: tuple[str, ...], low: int, high: int) -> int:
    """The end of the last of these marks in text[low:high]; 0 if there is none."""
    return max(at + len(mark) if (at := text.rfind(mark, low, high)) >= 0 else 0 for mark in marks)


def _whole(text: str, start: int, end: int) -> int:
    """The last place in (start, end] that is not inside a character, that is, before a mark or beside a joiner."""
    for cut in range(end, max(start, end - LONGEST), -1):
        after = text[cut : cut + 1]
        if text[cut - 1] != JOINER and after != JOINER and not (after and _belongs_to_the_last(after)):
            return cut
    return end


def _belongs_to_the_last(character: str) -> bool:
    """Marks, tones of skin, and vowels and finals of decomposed Korean."""
    return (
        unicodedata.category(character)[0] == "M"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
        or "\u1160" <= character <= "\u11ff"
    )


def _around(blocks: list[Block], place: int) -> Block | None:
    """The code block that a cut at this place would split."""
    index = bisect_left(blocks, (place,)) - 1
    return blocks[index] if index >= 0 and blocks[index][0] < place < blocks[index][1] else None
