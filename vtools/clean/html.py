"""HTML answers to Markdown, and nothing done to any other text."""

from __future__ import annotations

import re

from vtools.jsonl import Reject

CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
# Another site's counter, which it put before the message it copied.
_COUNTER = re.compile(r"(?:\s*+Copy\d++ chars / \d++ words)++")
# A message is HTML if it begins with a block of it; ChatGPT's pager ("2 / 3") may stand before.
_HTML = re.compile(
    r"\s*(?:\d+ / \d+\s*)?"
    r"(?=<(?:div|p|ul|ol|pre|h[1-6]|table|blockquote|section|article|figure|hr)(?=[\s/>])[^<]*>)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^ {0,3}```", re.MULTILINE)


def looks_like_html(text: str) -> bool:
    """Whether an answer is HTML: it begins with a block, and holds no Markdown fence outside `<pre>`."""
    return _HTML.match(text) is not None and ("<pre" in text or _FENCE.search(text) is None)


def to_markdown(text: str, engine: str) -> str:
    """The Markdown of an answer; one that is not HTML is returned as it is. Raises Reject("html_parse").

    The result never looks like HTML, so a second pass changes nothing.
    """
    text = _without_counter(CONTROLS.sub("", text))
    if not looks_like_html(text):
        return text
    text = _without_counter(_convert(text[_HTML.match(text).end() :], engine))  # type: ignore[union-attr]
    # A tag that was text in the HTML is escaped, if it would look like HTML again.
    return text.replace("<", "\\<", 1) if looks_like_html(text) else text


def _without_counter(text: str) -> str:
    counter = _COUNTER.match(text)
    return text[counter.end() :] if counter else text


def _convert(text: str, engine: str) -> str:
    from vtools.clean import engines
    from vtools.clean.page import Page

    try:
        page = Page(text)
        document = "".join(page.out)
        first, *others = engines.chosen(engine)
        try:
            return page.restore(first(document))
        except Exception:
            if not others:
                raise
            return page.restore(others[0](document))
    except Exception as error:  # one message must not end the run
        raise Reject("html_parse", f"{type(error).__name__}: {error}"[:500]) from None
