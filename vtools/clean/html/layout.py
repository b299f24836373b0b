"""The small, well-formed document that an engine gets: elements open and close, text is escaped for Markdown already.

Whatever must survive byte for byte (code, math) stands in it as a placeholder, and `<`, `&` and `"` of the text are
control characters, which no message holds; so both engines give the same text.
"""

from __future__ import annotations

import html
import re

from vtools.clean.html import escape, placeholders
from vtools.clean.html.tags import BLOCKS, CELLS, FLAT, HEADINGS, INLINE, PARTS

_SPACES = re.compile("[ \t\n\r\f\xa0]{2,}|[\t\n\r\f\xa0]")
_MARKS = {"strong": "**", "em": "*", "del": "~~"}
_DEEPEST = 100  # levels kept; text below is kept on the last of them


class Layout:
    """A document that grows: `out` is its HTML in pieces, `kept` what its placeholders stand for."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.kept: list[str] = []
        self.open: list[str] = []  # names of the open elements; "-name" has no tag in `out`
        self.flat = self.cells = 0  # how many of them are FLAT, and how many table cells
        self.fresh = True  # at the start of a block or line
        self.spaced = True  # after white space
        self.rows: list[tuple[int, int]] = []  # of the open table: place of </tr> in `out`, number of cells
        self.columns = 0  # cells in the open row
        self.text: list[str] = []  # text not yet in `out`
        self.marked: list[int] = []  # places in `out` of this block's texts with * or _
        self.begun: list[int] = []  # places in `out` kept for the opening marks of open emphasis
        self.marks: list[tuple[int, int, str]] = []  # this block's emphasis: places of its marks, name
        self.address, self.link = "", 0  # of the open link: where it leads, its place in `out`
        self.last = ""  # last tag in `out`, if nothing came after

    def within(self, wanted: tuple[str, ...], limit: str = "") -> bool:
        for other in reversed(self.open):
            if other.lstrip("-") in wanted:
                return True
            if other.lstrip("-") == limit:
                return False
        return False

    def enter(self, parents: tuple[str, ...] = ("ul", "ol", "table", "tr")) -> None:
        """Open the item or cell that content of a list or table must stand in."""
        parent = self.open[-1] if self.open else ""
        if parent not in parents:
            return
        if parent in ("ul", "ol"):
            if self.out[-1] == "</li>":  # as browsers show it: below the item before
                self.out.pop()
                self.open.append("li")
            else:
                self.push("li", "<li>")
        else:
            if parent == "table":
                self.push("tr", "<tr>")
            self.push("td", "<td>")

    def make_room(self, name: str) -> None:
        """Close what a new block of this name ends, as a browser does for tags that nobody closed."""
        stack = self.open
        while stack and stack[-1].lstrip("-") in INLINE:
            self.pop()
        if stack and (stack[-1] in ("p", "-p") or (name in HEADINGS and stack[-1] in HEADINGS)):
            self.pop()
        ended, limits = {
            "li": (("li",), ("ul", "ol", "table", "td", "th")),
            "tr": (("tr",), ("table",)),
            "td": (("td", "th"), ("tr", "table")),
            "th": (("td", "th"), ("tr", "table")),
        }.get(name, ((), ()))
        for depth in range(len(stack) - 1, -1, -1) if ended else ():
            other = stack[depth].lstrip("-")
            if other in ended:
                while len(stack) > depth:
                    self.pop()
            if other in ended or other in limits:
                break

    def push(self, name: str, tag: str) -> None:
        if len(self.open) >= _DEEPEST and name not in PARTS:
            return
        self.open.append(name)
        if name in FLAT:
            self.flat += 1
            if name in CELLS:
                self.cells += 1
                self.columns += 1
        elif name == "table":
            self.rows.clear()
        elif name == "tr":
            self.columns = 0
        if tag:
            self.out.append(tag)
        if name in BLOCKS:
            self.begin(tag)

    def pop(self) -> None:
        name = self.open.pop()
        if name in FLAT:
            self.flat -= 1
            self.cells -= name in CELLS
        if name[0] == "-":
            if name[1:] in BLOCKS:
                self.space()
            return
        if name in INLINE:
            self.close_inline(name)
            return
        if name == "table":
            columns = max((count for _, count in self.rows), default=0)
            for place, count in self.rows:
                self.out[place] = "<td></td>" * (columns - count) + "</tr>"
        if name not in CELLS and name != "li" and self.out[-1].startswith((f"<{name}>", f"<{name} ")):
            self.out.pop()  # it is empty
        else:
            self.out.append(f"</{name}>")
            if name == "tr":
                self.rows.append((len(self.out) - 1, self.columns))
        if name in BLOCKS:
            self.begin(self.out[-1] if self.out else "")

    def close_inline(self, name: str) -> None:
        if name == "a":
            text = "".join(self.out[self.link + 1 :])
            inside = any(start > self.link for start, _, _ in self.marks)
            if not text.strip():
                self.out[self.link] = ""
            elif (
                ":" in self.address
                and not inside
                and text == escape.text(self.address).translate(placeholders.TO_CONTROLS)
            ):
                self.out[self.link :] = [f"<{self.address}>".translate(placeholders.TO_CONTROLS)]
                self.marked = [place for place in self.marked if place < self.link]
            else:
                self.out.append(f"]({self.address})".translate(placeholders.TO_CONTROLS))
            return
        start, last = self.begun.pop(), self.out[-1]
        if len(self.out) == start + 1:
            if not last:
                self.out.pop()
            return
        spaced = last[-1:] == " "
        if spaced:  # white space stands outside of marks
            self.out[-1] = last[:-1]
        self.marks.append((start, len(self.out), name))
        self.out.append(" " if spaced else "")

    def begin(self, last: str) -> None:
        """Stand at the start of a line, after a tag."""
        self.settle()
        self.fresh, self.spaced, self.last = True, True, last

    def space(self) -> None:
        if not self.spaced:
            self.out.append(" ")
            self.spaced = True

    def hold(self, text: str, block: bool = False) -> None:
        """Put a placeholder for finished Markdown into the document."""
        if self.cells:
            text = text.replace("\n", " ").replace("|", "\\|")
        elif self.flat:
            text = text.replace("\n", " ")
        self.enter()
        token = placeholders.token(self.kept, text)
        if block:
            self.out.append(f"<p>{token}</p>")
            self.begin("</p>")
        else:
            if text[:1] == "`" and self.out and self.out[-1].endswith("\x03)") and self.kept[-2][-1:] == "`":
                token = " " + token
            self.out.append(token)
            self.fresh, self.spaced, self.last = False, False, ""

    def flush(self) -> None:
        """Move the text read so far into the document."""
        if not self.text:
            return
        text = "".join(self.text)
        self.text.clear()
        if "&" in text:
            text = html.unescape(text)
        if "  " in text or placeholders.UNUSUAL.search(text):
            text = _SPACES.sub(" ", text)
        if self.spaced:
            text = text.lstrip(" ")
        if not text or (text == " " and self.open and self.open[-1] in ("ul", "ol", "table", "tr")):
            return
        self.enter()
        self.spaced = text[-1] == " "
        if text[0] == " " and self.begun and self.begun[-1] == len(self.out) - 1:
            outermost = len(self.out) - 1
            while outermost - 1 in self.begun:
                outermost -= 1
            self.out[outermost], text = " ", text[1:]
            if not text:
                return
        text = escape.text(text)
        if "a" in self.open:
            text = escape.brackets(text)
        if self.fresh and not self.flat:
            text = escape.line_start(text)
        if "*" in text or "_" in text:
            self.marked.append(len(self.out))
        self.out.append(placeholders.hidden(text))
        self.fresh, self.last = False, ""

    def settle(self) -> None:
        """At the end of a block or line: write its marks, and escape its * and _ if they would be read as marks."""
        if self.marked:
            texts = escape.emphasis([self.out[place] for place in self.marked], bool(self.marks or self.begun))
            for place, text in zip(self.marked, texts, strict=True):
                self.out[place] = text
            self.marked.clear()
        if not self.marks or self.begun:
            return
        ends = {end for _, end, _ in self.marks}
        slots = ends.union(start for start, _, _ in self.marks)
        written = {}
        for start, end, name in self.marks:
            # Marks where a parser takes them for marks (CommonMark 0.31, 6.2), tags elsewhere.
            before, after = (
                self.out[start] or self.beside(start, -1, slots, ends),
                self.out[end] or self.beside(end, 1, slots, ends),
            )
            opens = self.beside(start, 1, slots, ends).isalnum() or not before.isalnum()
            closes = self.beside(end, -1, slots, ends).isalnum() or not after.isalnum()
            touches = start - 1 in ends and not self.out[start - 1] + self.out[start]
            mark, last = (_MARKS[name],) * 2 if opens and closes and not touches else (f"\x04{name}>", f"\x04/{name}>")
            written[start], written[end] = self.out[start] + mark, last + self.out[end]
        for place, text in written.items():
            self.out[place] = text
        self.marks.clear()

    def beside(self, place: int, step: int, slots: set[int], ends: set[int]) -> str:
        """The character that will stand beside a mark."""
        place += step
        while 0 <= place < len(self.out) and not self.out[place] and place not in slots:
            place += step
        if not 0 <= place < len(self.out):
            return " "
        text = self.out[place]
        if place in slots:
            return " " if text and (place in ends) == (step < 0) else "*"
        return " " if text[0] == "<" else text[0 if step > 0 else -1]
