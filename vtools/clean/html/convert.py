"""HTML answers to Markdown; any other text stays as is."""

import functools
import re
from collections.abc import Callable

_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32)])
_TO_NUL = bytes(0 if byte in _CONTROLS else byte for byte in range(256))
# A counter that another site put before the message it copied.
_COUNTER = re.compile(r"(?:\s*+Copy\d++ chars / \d++ words)++")
# A message is HTML if it begins with an HTML block; ChatGPT's pager ("2 / 3") may precede it.
_HTML = re.compile(
    r"\s*(?:\d+ / \d+\s*)?"
    r"(?=<(?:div|p|ul|ol|pre|h[1-6]|table|blockquote|section|article|figure|hr)(?=[\s/>])[^<>]*+>)",
    re.IGNORECASE,
)


def looks_like_html(text: str) -> bool:
    """Whether an answer is HTML of ChatGPT's page: it begins with a block, and all of it could be the page's."""
    return _start(text) is not None


def _start(text: str) -> int | None:
    """Where the HTML of an answer begins; None if it is not HTML."""
    match = _HTML.match(text)
    return match.end() if match and _is_page()(text[match.end() :]) else None


@functools.cache
def _is_page() -> Callable[[str], bool]:
    from vtools.clean.html import recognition  # here: Markdown does not need it

    return recognition.is_page


def has_counter(text: str) -> bool:
    """Whether another site's counter precedes the message."""
    return _COUNTER.match(text) is not None


def without_controls(text: str) -> str:
    """Text without control characters; tabs and line ends stay."""
    raw = text.encode("utf-8", "surrogatepass")
    if b"\0" not in raw.translate(_TO_NUL):  # many times faster than searching for each
        return text
    return raw.translate(None, _CONTROLS).decode("utf-8", "surrogatepass")


def to_markdown(text: str, engine: str) -> str:
    """The Markdown of an answer; one that is not HTML is returned as is. Raises Reject("html_parse").

    The result never looks like HTML, so a second pass changes nothing.
    """
    return converted([without_controls(text)], engine)[0]


def converted(texts: list[str], engine: str) -> list[str]:
    """The same for several answers without control characters."""
    return counted(texts, engine)[0]


def counted(texts: list[str], engine: str) -> tuple[list[str], int]:
    """The same, and how many were HTML."""
    texts = [_without_counter(text) for text in texts]
    pages = {place: text[start:] for place, text in enumerate(texts) if (start := _start(text)) is not None}
    if pages:
        from vtools.clean.html import engines

        for place, text in zip(pages, engines.convert(list(pages.values()), engine), strict=True):
            text = _without_counter(text)
            # Text that looked like a tag in the HTML is escaped if the result would look like HTML again.
            texts[place] = text.replace("<", "\\<", 1) if looks_like_html(text) else text
    return texts, len(pages)


def _without_counter(text: str) -> str:
    counter = _COUNTER.match(text)
    return text[counter.end() :] if counter else text
