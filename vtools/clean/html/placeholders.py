"""Holding back what an engine must not touch: placeholders for finished Markdown, control characters (which no message
contains) for `<`, `&` and `"` of the text."""

import re
from typing import NamedTuple

UNUSUAL = re.compile("[\t\n\r\f\xa0]")  # white space that becomes a space
# In brackets, because engines look at the character next to emphasis, and held text begins and ends with punctuation.
TOKEN = re.compile("(\\(\x02\\d+\x03\\))")
HELD = re.compile("\\(\x02(\\d+)\x03\\)")
_SIDES = re.compile(" *\x0e([-lcr]+)\x0f([^\n]*\n[^|\n]*)[-| ]+")  # how the columns of a table are aligned
_RULES = {"l": " :--- |", "c": " :---: |", "r": " ---: |", "-": " --- |"}
END = "\x02\x03\x02"  # end of one document among several
SEPARATOR = "<p>\x02\x03</p>"  # between two lists, which would otherwise merge
TO_CONTROLS = {ord("<"): "\x04", ord("&"): "\x05", ord('"'): "\x06"}
_FROM_CONTROLS = {4: "<", 5: "&", 6: '"'}


class Document(NamedTuple):
    """A small well-formed HTML document for an engine, and the Markdown behind its placeholders."""

    html: str
    kept: list[str]
    crowded: bool = False  # whether a list item holds a table, rule, quote or heading


def token(kept: list[str], markdown: str) -> str:
    """Store finished Markdown in `kept` and return its placeholder."""
    kept.append(markdown)
    return f"(\x02{len(kept) - 1}\x03)"


def hidden(text: str) -> str:
    """A text in which an engine finds no tag and no entity."""
    return text.translate(TO_CONTROLS) if "<" in text or "&" in text else text


def restored(markdown: str, kept: list[str]) -> str:
    """Put what was held back into an engine's result; blocks are indented like their first line."""
    if "\x02\x03" in markdown:
        *parts, last = markdown.split("\x02\x03")
        markdown = "".join([*map(_without_last_line, parts), last])
    if "\x04" in markdown or "\x05" in markdown or "\x06" in markdown:
        markdown = markdown.translate(_FROM_CONTROLS)
    if "\x0e" in markdown:
        markdown = _SIDES.sub(lambda match: match[2] + "|" + "".join([_RULES[side] for side in match[1]]), markdown)
    if kept:
        markdown = HELD.sub(lambda match: _indented(kept[int(match[1])], match), markdown)
    return markdown.strip("\n ")


def _without_last_line(text: str) -> str:
    """Text without its last line of indent and quote marks, and without an empty line before."""
    before = text.rstrip(" >").removesuffix("\n")
    bare = before.rstrip(" >")
    return bare[:-1] if bare.endswith("\n") else before


def _indented(text: str, match: re.Match[str]) -> str:
    """Held text; each line of a block gets the prefix of its first: a list's indent, a quote's marks."""
    if "\n" not in text:
        return text
    before = match.string[match.string.rfind("\n", 0, match.start()) + 1 : match.start()]
    if not before:
        return text
    indent = re.sub("[^>]", " ", before)
    first, *rest = text.split("\n")
    return "\n".join([first, *(indent + line if line else indent.rstrip() for line in rest)])
