"""The fast path for ordinary HTML answers (most of them): the engine gets them nearly unchanged.

Code is cut out, and only texts with characters that could be Markdown markup are examined. Anything unusual leaves the
message to `page`, which is slower and gives the same Markdown for every message that is handled here.
"""

import re
from functools import lru_cache

from vtools.clean.html import code, emphasis, escape, placeholders, tags

_TAG = re.compile("<[^<>]*>")
_CODE = re.compile("<code(?: [^<>]*)?>([^<>]+)</code>")
_SUSPECT = re.compile(r"[\\`*_~&\]]")  # a set is searched much faster than alternatives;
_TO_NUL = bytes(0 if byte in b"\\`*_~&]" else byte for byte in range(256))  # faster still if none occurs
_LINE_START = re.compile(r"> ?(?:[-+#=]|\d{1,9}[.)])", re.ASCII)
_INLINE = ("<strong>", "</strong>", "<em>", "</em>")
_STARTS = frozenset(("<strong>", "<em>"))
_MARK = re.compile("</?(?:strong|em)>")
# Content of a list or table outside its items or cells, and empty blocks; and two adjacent lists, which a parser
# would read as one.
_LOOSE = re.compile(
    "<(?:[uo]l[^<>]*>(?! ?<li>)|/li>(?! ?(?:<li>|</[uo]l>))|(?:t(?:able|r)>|/t[rdh]>)(?! ?<)"
    "|(?:p|div|blockquote|h[1-6])(?: [^<>]*)?> ?</|(/[uo]l> ?)(?=<[uo]l))"
)
_CLOSING = re.compile("# ?(?:</(?:strong|em)> ?)*</h")  # a parser drops #s at the end of a heading
_TWO_LISTS = re.compile("(</[uo]l>) ?(?=<[uo]l)")
_GROUPS = re.compile("</?t(?:head|body)>")
_FLAT = tuple(f"<{name}" for name in sorted(tags.FLAT))
# The parents that each element may have.
_OUTSIDE = frozenset(("", "div", "li", "blockquote"))
_INSIDE = dict.fromkeys((tags.BLOCKS - tags.PARTS) | {"hr"}, _OUTSIDE) | {
    "li": frozenset(("ul", "ol")), "tr": frozenset(("table",)), "td": frozenset(("tr",)), "th": frozenset(("tr",)),
    "strong": _OUTSIDE | tags.FLAT | {"p"}, "em": _OUTSIDE | tags.FLAT | {"p"},
}  # fmt: skip
_ANY_ATTRIBUTE = tags.HEADINGS | {"div", "p", "blockquote"}
_DEEPEST = 50
_REMEMBERED = 4096  # tags


def document(text: str) -> placeholders.Document | None:
    """The document for an engine, or None for a message that needs `page`."""
    kept: list[str] = []
    body = _without_blocks(text, kept)
    if not text.startswith("<") or body is None:
        return None
    if "<code" in body:
        body = _CODE.sub(lambda match: placeholders.token(kept, escape.code(code.unescape(match[1]))), body)
        if "\x03)(\x02" in body:  # two adjacent code spans
            return None
    body = body.replace("\n", " ").replace("\xa0", " ").replace("&nbsp;", " ")
    if "</table>" in body:
        body = _GROUPS.sub("", body)
        if not _even(body) or any("|" in text for text in kept):
            return None
    while "  " in body:
        body = body.replace("  ", " ")
    found = _TAG.findall(body)
    if not len(found) == body.count("<") == body.count(">"):
        return None
    crowded = _nested(found)
    if crowded is None:
        return None
    loose = _LOOSE.findall(body)
    if "#" in body and _CLOSING.search(body):
        return None
    if "" in loose or "\t" in body or "\r" in body or "\f" in body:
        return None
    marks = not _STARTS.isdisjoint(found)
    if marks and not _marks_are_read(body):
        return None
    body = _escaped(body)
    if body is None:
        return None
    if loose:
        body = _TWO_LISTS.sub(rf"\1{placeholders.SEPARATOR}", body)
    if marks:
        body = body.replace("<strong>", "**").replace("</strong>", "**").replace("<em>", "*").replace("</em>", "*")
    return placeholders.Document(body, kept, crowded)


def _without_blocks(text: str, kept: list[str]) -> str | None:
    pieces, position = [], 0
    while (start := text.find("<pre", position)) >= 0:
        end = text.find("</pre>", start)
        if end < 0 or text.find("<pre", start + 4, end) >= 0 or text[start + 4] not in "> ":
            return None
        pieces.append(text[position:start])
        content, language = code.preformatted(text[start:end])
        if content:
            pieces.append(f"<p>{placeholders.token(kept, escape.fence(content, language))}</p>")
        position = end + 6
    return "".join([*pieces, text[position:]]) if pieces else text


def _plain(tag: str) -> str:
    """The name, with its slash, of a tag that an engine may see as is; empty for any other."""
    name, kind = tags.kind(tag)
    if tag in (*_INLINE, "<hr>") or (kind == "on_close" and tag == f"</{name}>" and name not in tags.INLINE):
        return tag[1:-1]
    bare = tag == f"<{name}>" or (name == "ol" and re.fullmatch(r'<ol start="\d{1,9}">', tag, re.ASCII))
    if kind != "on_block" or not (bare or (name in _ANY_ATTRIBUTE and tag.startswith(f"<{name} "))):
        return ""
    return name


class _Element(dict[str, "_Element | None"]):
    """An open element: by tag, the element that it opens; `_CLOSED` for its closing tag, None for one it cannot have.

    A lookup is all the work for most tags: an answer has hundreds.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __missing__(self, tag: str) -> "_Element | None":
        name = _plain(tag)
        allowed = name == f"/{self.name}" if name[:1] == "/" else self.name in _INSIDE.get(name, ())
        found = (_CLOSED if name[:1] == "/" else _element(name)) if allowed else None
        if len(self) < _REMEMBERED:
            self[tag] = found
        return found


_CLOSED = _Element("/")


@lru_cache
def _element(name: str) -> _Element:
    return _Element(name)


def _nested(found: list[str]) -> bool | None:
    """Whether a list item is crowded; None unless the tags are known and properly nested."""
    here, crowded = _element(""), False
    around: list[_Element] = []
    for tag in found:
        after = here[tag]
        if after is None:
            return None
        if after is _CLOSED:
            here = around.pop()
            continue
        if after.name in tags.CROWDING and not crowded:
            crowded = any([element.name == "li" for element in (*around, here)])
        if after.name != "hr":
            around.append(here)
            here = after
            if len(around) > _DEEPEST:
                return None
    return None if around else crowded


def _even(body: str) -> bool:
    """Whether each table's rows have as many cells as its first."""
    for table in body.split("<table>")[1:]:
        rows = table.partition("</table>")[0].split("</tr>")[:-1]
        cells = {row.count("</td>") + row.count("</th>") for row in rows}
        if len(cells) != 1 or 0 in cells:
            return False
    return True


def _marks_are_read(body: str) -> bool:
    """Whether a parser recognises every emphasis mark, and no two are adjacent (CommonMark 0.31, 6.2)."""
    for mark in _MARK.finditer(body):
        before, after = body[mark.start() - 1 : mark.start()] or ">", body[mark.end() : mark.end() + 1] or "<"
        outer, inner = (after, before) if mark[0][1] == "/" else (before, after)
        if inner in " <>&;" or outer in "&;" or not (inner.isalnum() or emphasis.is_apart(outer)):
            return False
        if outer in "<>" and (body.startswith(_INLINE, mark.end()) or body.endswith(_INLINE, 0, mark.start())):
            return False
    return True


def _escaped(body: str) -> str | None:
    """Escape the texts that contain what Markdown would read as markup."""
    suspect = b"\0" in body.encode("utf-8", "surrogatepass").translate(_TO_NUL)
    places = [match.start() for match in _SUSPECT.finditer(body)] if suspect else []
    places += [match.end() - 1 for match in _LINE_START.finditer(body)]
    if not places:
        return body
    places.sort()
    pieces, done = [], 0
    for place in places:
        if place < done:
            continue
        start = body.rfind(">", done, place) + 1 or done
        end = body.find("<", place)
        end = len(body) if end < 0 else end
        after_mark = body.endswith(_INLINE, 0, start)
        flat = body.startswith(_FLAT, body.rfind("<", 0, start))
        beside_mark = after_mark or body.startswith(_INLINE, end)
        text = _text(body[start:end], beside_mark, not after_mark and not flat)
        if text is None:
            return None
        pieces += [body[done:start], text]
        done = end
    return "".join([*pieces, body[done:]])


def _text(text: str, beside_mark: bool, begins: bool) -> str | None:
    """One text between tags, escaped as `page` escapes it; `begins` if a line begins with it."""
    if "&" in text:
        text = code.unescape(text)
        if placeholders.UNUSUAL.search(text) or "  " in text:
            return None
    lead = " " if text[:1] == " " else ""
    texts = placeholders.TOKEN.split(text[len(lead) :])  # alternating texts and tokens
    texts[::2] = map(escape.text, texts[::2])
    if texts[0] and begins:
        texts[0] = escape.line_start(texts[0])
    marked = [place for place in range(0, len(texts), 2) if "*" in texts[place] or "_" in texts[place]]
    if marked:
        if beside_mark:
            return None
        for place, escaped in zip(marked, escape.emphasis([texts[place] for place in marked], False), strict=True):
            texts[place] = escaped
    return placeholders.hidden(lead + "".join(texts))
