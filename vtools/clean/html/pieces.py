"""A very long message in pieces that are converted one by one: each tag takes many times its length in memory."""

from collections.abc import Iterator

from vtools.clean.html import tags

LONG = 1 << 20  # characters; a message up to this length is one piece
_NO_END = """br hr img input wbr col p li tr td th dt dd thead tbody tfoot"""  # elements that need no closing tag
_SINGLE = frozenset(_NO_END.split())
_STARTS = tags.HEADINGS | {"p"}


def cut(text: str, long: int = LONG) -> Iterator[str]:
    """The message cut before paragraphs and headings that are inside of nothing but `<div>`, each a whole message."""
    if len(text) <= long:
        yield text
        return
    begin = depth = divs = outer = 0
    for match in tags.CUT.finditer(text):
        tag = match[0]
        name = tags.name(tag)
        closes = tag[1] == "/"
        if name in _STARTS and not (depth or closes) and match.start() - begin >= long:
            yield outer * "<div>" + text[begin : match.start()] + divs * "</div>"
            begin, outer = match.start(), divs
        if name == "div":
            divs = max(divs + (-1 if closes else 1), 0)
        elif name and name not in _SINGLE:
            depth = max(depth + (-1 if closes else 1), 0)
    yield outer * "<div>" + text[begin:]
