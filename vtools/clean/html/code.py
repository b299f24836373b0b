"""Code of an HTML message, byte for byte, with the language named by the page."""

import html
import re

from vtools.clean.html import tags

CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_TAG = re.compile("</?[a-zA-Z][^<>]*>")
_BREAK = re.compile("<br[^<>]*>", re.IGNORECASE)
# Some pages have an element for each line of code; they show an empty one by a break.
_LINE = "</?(?:div|p|li|tr)(?:\\s[^<>]*)?>"
_LINE_END = re.compile(
    f"(?:<br[^<>]*>)?(?:</(?:div|p|li|tr)>)+\\n?|(?<=[^>\\n]){_LINE}|</code>(?=<code)", re.IGNORECASE
)
_OPEN = re.compile("<code[^<>]*>", re.IGNORECASE)
_LANGUAGE = re.compile(r"\b(?:language|lang)-([^\s\"'>]+)")
_LABEL = re.compile(r"[\w+#.-]{1,32}")
_COPY = re.compile(r"\s*(?:Copy code|Copy|Edit)+\s*\Z")


def preformatted(element: str) -> tuple[str, str]:
    """Code and language of a `<pre>` element, given without its closing tag; empty if it is blank."""
    opening = _OPEN.search(element)
    if opening is None:
        body, label = inner(_lines(element[element.find(">") + 1 :])).removeprefix("\n"), ""
    else:
        end = element.rfind("</code", opening.end())
        body = inner(_lines(element[opening.end() : end if end >= 0 else len(element)]))
        language = _LANGUAGE.search(opening[0])
        if language:
            label = html.unescape(language[1])
        else:
            header = (text for text in tags.CUT.split(element[: opening.start()])[::2] if text.strip())
            label = _COPY.sub("", html.unescape(next(header, ""))).strip()
    body = body.removesuffix("\n") if body.strip() else ""
    return body, label if _LABEL.fullmatch(label) else ""


def _lines(source: str) -> str:
    only_spans = source.count("</") == source.count("</span>")  # the usual case
    return source if only_spans else _LINE_END.sub("\n", source)


def inner(source: str) -> str:
    """The text of an element, with its line breaks."""
    if "<br" in source or "<BR" in source:
        source = _BREAK.sub("\n", source)
    text, found = _TAG.subn("", source)
    if not found == source.count("<") == source.count(">"):  # not tags alone
        text = tags.CUT.sub("", source)
    return unescape(text).replace("\r\n", "\n")


def unescape(text: str) -> str:
    """Text with entities resolved, without control characters that were written as entities."""
    if "&" not in text:
        return text
    # None of these four can form a new entity with its neighbours.
    text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#39;", "'")
    if text.count("&") == text.count("&amp;"):
        return text.replace("&amp;", "&")
    return CONTROLS.sub("", html.unescape(text))
