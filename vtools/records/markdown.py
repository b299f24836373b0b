"""Where a Markdown text holds fenced code."""

import re
from collections.abc import Iterator

Block = tuple[int, int]  # where a fenced code block begins, and where the text after it does

# Before a fence stand indents and marks of quotes and list items: only what they mean tells how far it may be indented.
_BEFORE = r"^(?P<before>(?:[ \t>]++|(?:[-*+]|\d{1,9}[.)])(?=[ \t]))*+)"
_FENCE = re.compile(_BEFORE + r"(?P<mark>`{3,}+(?=[^`\n]*$)|~{3,}+)(?P<info>.*)\n?", re.MULTILINE)


def fences(text: str) -> Iterator[Block]:
    """The fenced code blocks of a text (CommonMark 0.31, 4.5).

    One is closed by a fence of its kind that is at least as long, alone on its line; one that is never closed goes to
    the end.
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
