r"""The small, well-formed HTML document that an engine gets, built from the text and tags of a message.

Its elements are balanced and its text is already escaped for Markdown. What must survive byte for byte (code, math) is
a placeholder, and `<`, `&` and `"` of the text are control characters, which no message contains. So every engine
gives the same Markdown. An example, with {0} for the placeholder and « for the control character of `<`:

    message   <p>Add <b>2*3</b> if a &lt; b:<ul><li>Run <code>x*y</code><li>stop</ul>
    document  <p>Add **2\*3** if a « b:</p><ul><li>Run {0}</li><li>stop</li></ul>      kept ["`x*y`"]
    Markdown  Add **2\*3** if a < b:

              - Run `x*y`
              - stop
"""

import html
import re

from vtools.clean.html import escape, placeholders
from vtools.clean.html.tags import BLOCKS, CELLS, FLAT, HEADINGS, INLINE, PARTS, TABLE, TABLE_PARTS

_SPACES = re.compile("[ \t\n\r\f\xa0]{2,}|[\t\n\r\f\xa0]")
_MARKS = {"strong": "**", "em": "*", "del": "~~"}
_DEEPEST = 100  # levels of nesting; text nested deeper stays on the last one


class Layout:
    """Builds the document from calls in the order of the page: text, opening tags, closing tags, single tags.

    `out` is the document in pieces, joined at the end; other fields refer to its pieces by their index. A piece may
    be filled in later: an emphasis mark is an empty piece until its block ends, when it is known whether a Markdown
    parser would take `**` there for a mark (else it becomes a tag). `open` is the stack of open elements.
    """

    def __init__(self) -> None:
        self.out: list[str] = []  # pieces of the document
        self.kept: list[str] = []  # finished Markdown, by placeholder number
        self.open: list[str] = []  # names of the open elements, innermost last; "-name" has no tag in `out`
        self.flat = self.cells = 0  # how many open elements are FLAT, and how many are table cells
        self.fresh = True  # whether we are at the start of a block or line
        self.spaced = True  # whether `out` ends with white space
        self.rows: list[tuple[int, int]] = []  # for each row of the open table: index of its </tr>, number of cells
        self.columns = 0  # cells in the open row
        self.text: list[str] = []  # text not yet in `out`
        self.marked: list[int] = []  # indices of this block's texts with * or _
        self.begun: list[int] = []  # for each open emphasis, index of the empty piece for its opening mark
        self.marks: list[tuple[int, int, str]] = []  # this block's closed emphasis: indices of both marks, name
        self.address, self.link = "", 0  # the open link's target, and the index of its "["
        self.last = ""  # the last tag in `out`, if nothing follows it

    def write(self, text: str) -> None:
        """Add text of the page, as raw HTML text; it reaches `out` at the next tag."""
        self.text.append(text)

    def open_block(self, name: str, tag: str, empty_cells: int = 0) -> None:
        """Open a block, or a part of a list or table, after `empty_cells` empty cells (a wide cell takes several)."""
        self.end_text()
        self._close_implied(name)
        if name in TABLE_PARTS and not self._within(("table",)):
            return
        if name not in TABLE_PARTS:
            self._enter(("table", "tr"))
        if self.flat:
            self._space()
            self._push("-" + name, "")
            return
        if name == "li" and not self._within(("ul", "ol")):
            self._push("ul", "<ul>")
        elif name in CELLS and not self._within(("tr",), "table"):
            self._push("tr", "<tr>")
        elif name not in PARTS:
            self._enter()
        if name in ("ul", "ol") and self.last in ("</ul>", "</ol>"):
            self.out.append(placeholders.SEPARATOR)
        for _ in range(empty_cells):
            self._push(name, f"<{name}>")
            self._pop()
        self._push(name, tag)

    def open_inline(self, name: str) -> None:
        """Open emphasis: `strong`, `em` or `del`."""
        self.end_text()
        self._enter()
        if name in self.open:
            self._push("-" + name, "")
        elif self.marks and self.marks[-1][1:] == (len(self.out) - 1, name) and not self.out[-1]:
            self.begun.append(self.marks.pop()[0])  # two adjacent ones become one
            self.out.pop()
            self.open.append(name)
        else:
            self.begun.append(len(self.out))
            self.out.append("")
            self.open.append(name)
        self.fresh = False

    def open_link(self, address: str) -> None:
        """Open a link; without an address only its text remains."""
        self.end_text()
        self._enter()
        if "a" in self.open:
            self.close("a")
        self.address = address
        if not address:
            self._push("-a", "")
            return
        if self.out and self.out[-1].endswith("!"):  # `![` would be an image
            self.out[-1] = self.out[-1][:-1] + "\\!"
        self.link = len(self.out)
        self._push("a", "[")
        self.fresh = False

    def close(self, name: str) -> None:
        """Close the innermost open element of this name and all inside it, if its closing tag can apply."""
        self.end_text()
        for depth in range(len(self.open) - 1, -1, -1):
            other = self.open[depth].lstrip("-")
            if other == name:
                while len(self.open) > depth:
                    self._pop()
                return
            if (
                (name in INLINE and other in BLOCKS)
                or (other in TABLE and name not in TABLE)
                or (name == "li" and other in ("ul", "ol"))
                or (name in TABLE and other == "table")
            ):
                return

    def break_line(self) -> None:
        """Break the line; twice in a row, end the paragraph."""
        self.end_text()
        if self.cells:
            self.hold("<br>")
        elif self.flat:
            self._space()
        elif self.out and self.out[-1] == "<br>":
            self.out.pop()
            self._close_implied("p")
            self._push("p", "<p>")
        else:
            if self.out and self.out[-1][-1:] == " ":
                self.out[-1] = self.out[-1].rstrip(" ")
            if self.fresh and self.last != "<br>":
                return
            self._enter()
            self.out.append("<br>")
            self.fresh, self.spaced, self.last = True, True, "<br>"

    def rule(self) -> None:
        """Add a horizontal rule, where a block is allowed."""
        self.end_text()
        if not self.flat:
            self._close_implied("p")
            self._enter()
            self.out.append("<hr>")
            self._begin("<hr>")

    def hold(self, markdown: str) -> None:
        """Add finished inline Markdown through a placeholder; it stays as is."""
        self.end_text()
        token = self._token(markdown)
        if markdown[:1] == "`" and self.out and self.out[-1].endswith("\x03)") and self.kept[-2][-1:] == "`":
            token = " " + token
        self.out.append(token)
        self.fresh, self.spaced, self.last = False, False, ""

    def hold_block(self, markdown: str, in_line: str) -> None:
        """Add finished Markdown as a block of its own; where no block is allowed, `in_line` instead."""
        self.end_text()
        if self.flat:
            self.hold(in_line)
            return
        self._close_implied("p")
        self.out.append(f"<p>{self._token(markdown)}</p>")
        self._begin("</p>")

    def end_text(self) -> None:
        """Move the text written so far to `out`: entities resolved, white space collapsed, Markdown escaped."""
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
        self._enter()
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

    def finish(self) -> placeholders.Document:
        """Close all open elements and return the document."""
        self.end_text()
        while self.open:
            self._pop()
        self._settle()
        return placeholders.Document("".join(self.out), self.kept)

    def _within(self, wanted: tuple[str, ...], limit: str = "") -> bool:
        """Whether one of these elements is open, looking no further out than `limit`."""
        for other in reversed(self.open):
            if other.lstrip("-") in wanted:
                return True
            if other.lstrip("-") == limit:
                return False
        return False

    def _enter(self, parents: tuple[str, ...] = ("ul", "ol", "table", "tr")) -> None:
        """Open the missing list item or table cell if content comes directly inside one of `parents`."""
        parent = self.open[-1] if self.open else ""
        if parent not in parents:
            return
        if parent in ("ul", "ol"):
            if self.out[-1] == "</li>":  # as browsers show it: inside the previous item
                self.out.pop()
                self.open.append("li")
            else:
                self._push("li", "<li>")
        else:
            if parent == "table":
                self._push("tr", "<tr>")
            self._push("td", "<td>")

    def _close_implied(self, name: str) -> None:
        """Close what a new block of this name ends, as a browser does where closing tags are missing."""
        stack = self.open
        while stack and stack[-1].lstrip("-") in INLINE:
            self._pop()
        if stack and (stack[-1] in ("p", "-p") or (name in HEADINGS and stack[-1] in HEADINGS)):
            self._pop()
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
                    self._pop()
            if other in ended or other in limits:
                break

    def _push(self, name: str, tag: str) -> None:
        """Open an element, with its tag in `out` if it has one."""
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
            self._begin(tag)

    def _pop(self) -> None:
        """Close the innermost element; an empty one leaves nothing. Closing a table fills up its short rows."""
        name = self.open.pop()
        if name in FLAT:
            self.flat -= 1
            self.cells -= name in CELLS
        if name[0] == "-":
            if name[1:] in BLOCKS:
                self._space()
            return
        if name in INLINE:
            self._close_inline(name)
            return
        if name == "table":
            columns = max((count for _, count in self.rows), default=0)
            for place, count in self.rows:
                self.out[place] = "<td></td>" * (columns - count) + "</tr>"
        if name not in CELLS and name != "li" and self.out[-1].startswith((f"<{name}>", f"<{name} ")):
            self.out.pop()  # it is empty
            if self.out and self.out[-1] == placeholders.SEPARATOR:
                self.out.pop()
        else:
            self.out.append(f"</{name}>")
            if name == "tr":
                self.rows.append((len(self.out) - 1, self.columns))
        if name in BLOCKS:
            self._begin(self.out[-1] if self.out else "")

    def _close_inline(self, name: str) -> None:
        """Close a link or emphasis: write the link's end, or leave an empty piece for the closing mark."""
        if name == "a":
            text = "".join(self.out[self.link + 1 :])
            shown = escape.text(self.address).translate(placeholders.TO_CONTROLS)
            inside = any(start > self.link for start, _, _ in self.marks)
            if not text.strip():
                self.out[self.link] = ""
            elif ":" in self.address and not inside and text == shown:
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
        if spaced:  # white space belongs outside the marks
            self.out[-1] = last[:-1]
        self.marks.append((start, len(self.out), name))
        self.out.append(" " if spaced else "")

    def _begin(self, last: str) -> None:
        """Settle the block or line before, and be at the start of a new one, after the tag `last`."""
        self._settle()
        self.fresh, self.spaced, self.last = True, True, last

    def _space(self) -> None:
        """Add a space unless `out` ends with white space."""
        if not self.spaced:
            self.out.append(" ")
            self.spaced = True

    def _token(self, markdown: str) -> str:
        """The placeholder for finished Markdown, made to fit on one line and into a table cell where necessary."""
        if self.flat:
            markdown = markdown.replace("\n", " ")
            if self.cells:
                markdown = markdown.replace("|", "\\|")
        self._enter()
        return placeholders.token(self.kept, markdown)

    def _settle(self) -> None:
        """At the end of a block or line: fill in its emphasis marks, and escape * and _ that would be read as marks."""
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
            # Marks where a parser recognises them (CommonMark 0.31, 6.2), tags elsewhere.
            before = self.out[start] or self._beside(start, -1, slots, ends)
            after = self.out[end] or self._beside(end, 1, slots, ends)
            opens = self._beside(start, 1, slots, ends).isalnum() or not before.isalnum()
            closes = self._beside(end, -1, slots, ends).isalnum() or not after.isalnum()
            touches = start - 1 in ends and not self.out[start - 1] + self.out[start]
            mark, last = (_MARKS[name],) * 2 if opens and closes and not touches else (f"\x04{name}>", f"\x04/{name}>")
            written[start], written[end] = self.out[start] + mark, last + self.out[end]
        for place, text in written.items():
            self.out[place] = text
        self.marks.clear()

    def _beside(self, place: int, step: int, slots: set[int], ends: set[int]) -> str:
        """The character next to a mark: before it for step -1, after it for step 1."""
        place += step
        while 0 <= place < len(self.out) and not self.out[place] and place not in slots:
            place += step
        if not 0 <= place < len(self.out):
            return " "
        text = self.out[place]
        if place in slots:
            return " " if text and (place in ends) == (step < 0) else "*"
        return " " if text[0] == "<" else text[0 if step > 0 else -1]
