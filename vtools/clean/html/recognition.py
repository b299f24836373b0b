"""Whether a text that begins with a tag is HTML of ChatGPT's page, or Markdown or code that somebody wrote.

In doubt it is the page's: its own forms are `<div class="markdown ...">`, and, from the site that sanitised them, plain
elements with hardly any attribute.
"""

import functools
import re

from vtools.clean.html import tags
from vtools.records import markdown

# Classes that the page had and other HTML has not; with them nothing else is asked.
_PAGE = re.compile(r"""class=["'][^"'<>]*\b(?:markdown|prose|hljs|katex)\b""")
_BLOCKS = "div|p|[ou]l|li|pre|h[1-6]|table|thead|tbody|tfoot|t[rdh]|blockquote|section|article|figure"
# The page's elements, and what the sanitiser let through.
_ELEMENTS = re.compile(
    f"{_BLOCKS}|hr|br|a|img|span|strong|em|[bius]|strike|del|ins|su[bp]|code|kbd|samp|tt|var|input|caption|col|colgroup"
    "|figcaption|d[ltd]|abbr|cite|dfn|q|mark|small|time|wbr|ruby|r[bpt]|bd[io]"
)
_DRAWN = re.compile(  # SVG and MathML, with any attribute
    "svg|path|text|tspan|line|rect|circle|poly(?:line|gon)|ellipse|g|defs|math|semantics|annotation|mrow|m[inos]|mtext|mspace"
    "|m(?:sub|sup|subsup|under|over|underover)|mfrac|msqrt|mroot|mtable|mtr|mtd|mstyle|mpadded|mphantom"
)
_ATTRIBUTES = re.compile(
    r"class|href|target|rel|start|value|src|alt|title|type|checked|disabled|colspan|rowspan|dir|node|aria-.*"
    r"|data-(?:state|start|end|testid|col-size|footnote.*|is-.*|message-.*)"
)
# Utility classes, as the page had them, and the classes of its lists, math and notes.
_CLASS = re.compile(
    r"(?:[a-z-]+:)*!?-?(?:[mp][xytblr]?|[wh]|min|max|text|bg|flex|items|gap|justify|rounded|overflow|whitespace|border"
    r"|font|break|self|leading|dark|light|relative|absolute|group|language|lang|contains-task-list|task-list-item|math"
    r"|footnotes?|sr-only|result-streaming|empty)(?:-\S+)?!?"
)
_OPENING = re.compile("<[a-zA-Z][^<>]*>")
_CODE_SPAN = re.compile("<code>[^<]*+</code>")
_TAG = re.compile("</?[a-zA-Z][^<>]*>")
_ATTRIBUTE = re.compile(r"""\s([^\s"'<>/=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]*)))?""")
_LONG = 1 << 20
_CODE = re.compile(r"<(/?)(?:pre|code)\b[^<>]*>", re.IGNORECASE)
_EMPTY_LINES = re.compile(r"\n\s*\n")
# An indented block, or Markdown that begins after an empty line.
_SOURCE = re.compile(
    rf"\n(?:(?: {{2}}|\t)[ \t]*+</?(?:{_BLOCKS})\b"
    r"|\n {0,3}(?:\#{1,6} |[-*+] |\d{1,9}[.)] |> |\||\*\*\S|!?\[[^\]\n]{1,99}\]\(|(?:---+|===+|\*\*\*+)[ \t]*\n))"
)
_PLACEHOLDER = re.compile(  # of a template, or of JSX
    r"""\{\{(?<![\w^}]\{\{)\s*+[#/&>]?[a-zA-Z_][\w .|:"']+\}\}|\{%|<[%?]|>\{[a-zA-Z_][\w.]*+\}<"""
)
# A line that may begin outside of all blocks.
_TEXT_LINE = re.compile(rf"\n(?<=[>\s]\n)[ \t]*+(?:[^\s<]|<(?!/?(?:{_BLOCKS}|[bh]r)\b))")


def is_page(text: str) -> bool:
    """Judge a text that begins with a block by all of it: its tags, and what stands outside of them."""
    if "class=" in text and _PAGE.search(text):
        return True
    if ("```" in text or "~~~" in text) and "<pre" not in text and next(markdown.fences(text), None):
        return False
    prose = _CODE_SPAN.sub("<br>", text) if "<code" in text else text
    if "<code" in prose or "<pre" in prose:
        prose = _without_code(prose)
    for start in range(0, len(prose), _LONG):  # the tags of all of a long text would take many times its memory
        if any(map(_is_foreign, set(_OPENING.findall(prose, start, start + _LONG)))):
            return False
    prose = _EMPTY_LINES.sub("\n\n", prose)
    if _SOURCE.search(prose) or (("{" in prose or "<?" in prose or "<%" in prose) and _PLACEHOLDER.search(prose)):
        return False
    return not (_TEXT_LINE.search(prose) and _has_text_line(prose))


def _without_code(text: str) -> str:
    pieces, depth, end = [], 0, 0
    for tag in _CODE.finditer(text):
        if not depth:
            pieces.append(text[end : tag.start()])
        depth = max(depth + (-1 if tag[1] else 1), 0)
        end = tag.end()
    return "<br>".join(pieces if depth else [*pieces, text[end:]])


@functools.lru_cache(4096)
def _is_foreign(tag: str) -> bool:
    """Whether the page never had such a tag."""
    name = tags.name(tag)
    if _DRAWN.fullmatch(name):
        return False
    if not _ELEMENTS.fullmatch(name) or (name == "input" and "checkbox" not in tag):
        return True
    return any(_is_foreign_attribute(name, *pair) for pair in _ATTRIBUTE.findall(tag))


def _is_foreign_attribute(element: str, name: str, *values: str) -> bool:
    name, value = name.lower(), "".join(values)
    if element in ("td", "th") and (name == "align" or (name == "style" and "text-align" in value)):
        return False
    if name == "class":
        return element != "span" and not all(map(_CLASS.fullmatch, value.split()))
    if name == "id":
        return not value.startswith("user-content-")
    return value.startswith("{") or not _ATTRIBUTES.fullmatch(name)


def _has_text_line(prose: str) -> bool:
    """Whether a line of text begins outside of all blocks."""
    depth, end = 0, 0
    for tag in _TAG.finditer(prose):
        nesting = _nesting(tag[0])
        if not depth and "\n" in (prose[end : tag.start()] + ("x" if nesting is None else "")).rstrip():
            return True
        depth = max(depth + (nesting or 0), 0)
        end = tag.end()
    return not depth and "\n" in prose[end:].rstrip()


@functools.lru_cache(4096)
def _nesting(tag: str) -> int | None:
    """How a tag changes the depth of blocks; None for a tag inside a line."""
    name = tags.name(tag)
    if re.fullmatch(_BLOCKS, name):
        return -1 if tag[1] == "/" else 1
    return 0 if name in ("br", "hr") else None
