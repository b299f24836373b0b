"""The tags of an HTML message, and how each is handled."""

import functools
import html
import re

# Splits a message into alternating text and tags. A quote counts only after `=`, and `<` outside quotes starts a new
# tag; every repeat is possessive, so that time stays linear.
CUT = re.compile(
    r"""(<!--.*?(?:-->|\Z)"""
    r"""|</?[a-zA-Z][^<>=]*+(?:=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>][^\s<>]*+|)[^<>=]*+)*+>"""
    r"""|<[!?][^<>]*+>"""
    r"""|</?[a-zA-Z][^<>]*+\Z)""",
    re.DOTALL,
)
_NAME = re.compile(r"</?([a-zA-Z][^\s/>]*)")
_ATTRIBUTE = re.compile(r"""\s([a-zA-Z-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>]+))""")

BLOCKS = frozenset(
    ("div", "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "tr", "td", "th")
)
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
CELLS = frozenset(("td", "th"))
FLAT = HEADINGS | CELLS  # one line of Markdown: no blocks inside
PARTS = CELLS | {"li", "tr"}  # of lists and tables
TABLE_PARTS = CELLS | {"tr"}
TABLE = TABLE_PARTS | {"table"}
CROWDING = HEADINGS | {"table", "hr", "blockquote"}  # blocks that engines set not apart in a list item
INLINE = frozenset(("strong", "em", "del", "a"))
_CODE = frozenset(("code", "kbd", "samp", "tt"))
_LIKE_DIV = """section article main header footer aside details summary figure figcaption dl dt dd center form"""
_WITH_CONTENT = """button svg style script head title template select textarea iframe object canvas video audio"""
PAIRED = frozenset(("pre", "span", "div", *_CODE, *_WITH_CONTENT.split()))  # handled up to their closing tag
_SAME = {"b": "strong", "i": "em", "s": "del", "strike": "del", "menu": "ul", **dict.fromkeys(_LIKE_DIV.split(), "div")}
_KINDS = {
    **dict.fromkeys(BLOCKS, "on_block"),
    **dict.fromkeys(INLINE, "on_inline"),
    **dict.fromkeys(_CODE, "on_code"),
    **dict.fromkeys(_WITH_CONTENT.split(), "on_junk"),
    **{name: f"on_{name}" for name in ("a", "pre", "br", "hr", "img", "input", "caption")},
    "sup": "on_raw",
    "sub": "on_raw",
}


@functools.lru_cache(4096)
def name(tag: str) -> str:
    """The name of an opening or closing tag in small letters; empty for a comment or declaration."""
    match = _NAME.match(tag)
    return match[1].lower() if match else ""


@functools.lru_cache(4096)
def kind(tag: str) -> tuple[str, str]:
    """A tag's name and its handler: the name of a method of Page, or `unwrap`."""
    known = name(tag)
    known = _SAME.get(known, known)
    if tag[1] == "/":
        closes = known in BLOCKS or known in INLINE or known == "caption"
        return known, "on_close" if closes else "on_raw" if known in ("sup", "sub") else "unwrap"
    if "flex-grow" in tag and "flex-shrink-0" in tag:  # ChatGPT's pager, "2 / 3"
        return known, "on_junk"
    if known == "span" and "katex" in tag:
        return known, "on_katex"
    return known, _KINDS.get(known, "unwrap")


def attributes(tag: str) -> dict[str, str]:
    """The attributes of a tag, their entities resolved."""
    return {
        match[1].lower(): html.unescape(match[2] or match[3] or match[4] or "") for match in _ATTRIBUTE.finditer(tag)
    }
