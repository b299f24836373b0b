"""Where emphasis marks are written: `**` where a Markdown parser takes them for what they are, tags elsewhere."""

import unicodedata

_MARKS = {"strong": "**", "em": "*", "del": "~~"}
Mark = tuple[int, int, str]  # indices of both marks' pieces, name of the element


def is_word(character: str) -> bool:
    """Whether it is surely neither white space nor punctuation to a parser (CommonMark 0.31, 2.1)."""
    return character.isalnum() or (
        character > "\x7f" and not character.isspace() and unicodedata.category(character)[0] not in "PS"
    )


def is_apart(character: str) -> bool:
    """Whether it is surely white space or punctuation; a parser may take other symbols for either."""
    if character <= "\x7f":
        return not character.isalnum()
    return character.isspace() or unicodedata.category(character)[0] == "P"


def fill(out: list[str], marks: list[Mark]) -> None:
    """Write the marks of a block into its pieces, which are empty or hold the white space outside of the mark."""
    ends = {end for _, end, _ in marks}
    slots = ends.union(start for start, _, _ in marks)
    written = {}
    outer: list[int] = []  # ends of the pairs of * that are open
    for start, end, name in sorted(marks):
        while outer and outer[-1] < start:
            outer.pop()
        # Marks where a parser recognises them (CommonMark 0.31, 6.2), tags elsewhere.
        before = out[start] or _beside(out, start, -1, slots, ends)
        after = out[end] or _beside(out, end, 1, slots, ends)
        first, last = _beside(out, start, 1, slots, ends), _beside(out, end, -1, slots, ends)
        read = _flanks(first, before) and _flanks(last, after)
        if start - 1 in ends and not out[start - 1] + out[start]:  # it touches the mark before
            read = False
        if name == "del":
            read = read and "~" not in (first, before, last, after)
        else:
            if outer:  # one that could also be the other end would be taken for the outer one's
                before = out[start] or _beside(out, start, -1, slots, ends, beyond=True)
                after = out[end] or _beside(out, end, 1, slots, ends, beyond=True)
                read = read and not _flanks(before, first, surely=False) and not _flanks(after, last, surely=False)
            outer.append(end)
        mark, last = (_MARKS[name],) * 2 if read else (f"\x04{name}>", f"\x04/{name}>")
        written[start], written[end] = out[start] + mark, last + out[end]
    for place, text in written.items():
        out[place] = text


def _flanks(inner: str, outer: str, surely: bool = True) -> bool:
    """Whether a mark between these characters can belong to the inner one."""
    if inner.isspace():
        return False
    return is_word(inner) or is_apart(outer) if surely else not is_apart(inner) or not is_word(outer)


def _beside(out: list[str], place: int, step: int, slots: set[int], ends: set[int], beyond: bool = False) -> str:
    """The character next to a mark: before it for step -1, after it for step 1; `beyond` marks that touch it."""
    place += step
    while 0 <= place < len(out) and not out[place] and (beyond or place not in slots):
        place += step
    if not 0 <= place < len(out):
        return " "
    text = out[place]
    if place in slots:
        return " " if text and (place in ends) == (step < 0) else "*"
    return " " if text[0] == "<" else text[0 if step > 0 else -1]
