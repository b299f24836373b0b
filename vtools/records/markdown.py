"""Where a Markdown text has fenced code."""

import re
from collections.abc import Iterator

Block = tuple[int, int]  # start of a fenced code block, and of the text after it

# A fence may follow indents, quote marks and list markers, which decide how far it may be indented.
_BEFORE = r"^(?P<before>(?:[ \t>]++|(?:[-*+]|\d{1,9}[.)])(?=[ \t]))*+)"
_FENCE = re.compile(_BEFORE + r"(?P<mark>`{3,}+(?=[^`\n]*$)|~{3,}+)(?P<info>.*)\n?", re.MULTILINE)


def fences(text: str) -> Iterator[Block]:
    """The fenced code blocks of a text (CommonMark 0.31, 4.5).

    A block is closed by a fence of the same kind, at least as long, alone on its line; an unclosed one extends to the
    end.
    """
    if "```" not in text and "~~~" not in text:
        return
    begin, mark = 0, ""
    for line in _FENCE.finditer(text):
        if not mark:
            begin, mark = line.start(), line["mark"]
        elif line["mark"].startswith(mark) and not line["info"].strip() and not line["before"].strip(" \t>"):
            yield begin, line.end()
            mark = ""
    if mark:
        yield begin, len(text)
