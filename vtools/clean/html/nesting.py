"""Which open elements a tag ends, as browsers decide it; "-name" is an element without a tag in the document."""

from vtools.clean.html.tags import BLOCKS, HEADINGS, INLINE, TABLE

_ENDS = {  # by name of a new element: what it ends, and what it does not look beyond
    "li": (("li",), ("ul", "ol", "table", "td", "th")),
    "tr": (("tr",), ("table",)),
    "td": (("td", "th"), ("tr", "table")),
    "th": (("td", "th"), ("tr", "table")),
}


def within(stack: list[str], wanted: tuple[str, ...], limit: str = "") -> bool:
    """Whether one of these elements is open, looking no further out than `limit`."""
    for other in reversed(stack):
        if other.lstrip("-") in wanted:
            return True
        if other.lstrip("-") == limit:
            return False
    return False


def closed_by(stack: list[str], name: str) -> int:
    """How many elements stay open after a closing tag; all of them if it cannot apply."""
    for depth in range(len(stack) - 1, -1, -1):
        other = stack[depth].lstrip("-")
        if other == name:
            return depth
        if (
            (name in INLINE and other in BLOCKS)
            or (other in TABLE and name not in TABLE)
            or (name == "li" and other in ("ul", "ol"))
            or (name in TABLE and other == "table")
        ):
            break
    return len(stack)


def ended_by(stack: list[str], name: str) -> int:
    """How many elements stay open where a block begins, without the closing tags that are missing."""
    count = len(stack)
    while count and stack[count - 1].lstrip("-") in INLINE:
        count -= 1
    if count and (stack[count - 1] in ("p", "-p") or (name in HEADINGS and stack[count - 1] in HEADINGS)):
        count -= 1
    ended, limits = _ENDS.get(name, ((), ()))
    for depth in range(count - 1, -1, -1) if ended else ():
        other = stack[depth].lstrip("-")
        if other in ended:
            return depth
        if other in limits:
            break
    return count
