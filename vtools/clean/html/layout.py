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

from vtools.clean.html import emphasis, escape, nesting, placeholders
from vtools.clean.html.table import Table
from vtools.clean.html.tags import BLOCKS, CELLS, CROWDING, FLAT, HEADINGS, INLINE, PARTS, TABLE_PARTS

_SPACES = re.compile("[ \t\n\r\f\xa0]{2,}|[\t\n\r\f\xa0]")
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
        self.table = Table()  # the open table
        self.captioned = False  # whether a caption is open, in place of its table
        self.text: list[str] = []  # text not yet in `out`
        self.marked: list[int] = []  # indices of this block's texts with * or _
        self.begun: list[int] = []  # for each open emphasis, index of the empty piece for its opening mark
        self.marks: list[emphasis.Mark] = []  # this block's closed emphasis: indices of both marks, name
        self.address, self.link = "", 0  # the open link's target, and the index of its "["
        self.crowded = False  # whether a list item holds a table, rule, quote or heading
        self.last = ""  # the last tag in `out`, if nothing follows it

    def write(self, text: str) -> None:
        """Add text of the page, as raw HTML text; it reaches `out` at the next tag."""
        self.text.append(text)

    def open_block(self, name: str, tag: str, wide: int = 1, tall: int = 1, side: str = "") -> None:
        """Open a block, or a part of a list or table: a cell may take several columns and rows."""
        self.end_text()
        if self.captioned and name in TABLE_PARTS:
            self.close_caption()
        self._pop_to(nesting.ended_by(self.open, name))
        if name in TABLE_PARTS and not nesting.within(self.open, ("table",)):
            return
        if name not in TABLE_PARTS:
            self._enter(("table", "tr"))
        if self.flat:
            self._space()
            self._push("-" + name, "")
            return
        if name == "li" and not nesting.within(self.open, ("ul", "ol")):
            self._push("ul", "<ul>")
        elif name in CELLS and not nesting.within(self.open, ("tr",), "table"):
            self._push("tr", "<tr>")
        elif name not in PARTS:
            self._enter()
        if name in ("ul", "ol") and self.last in ("</ul>", "</ol>"):
            self.out.append(placeholders.SEPARATOR)
        if name in CROWDING:
            self.crowded = self.crowded or "li" in self.open
        if name in CELLS:
            while self.table.is_covered():
                self._push_empty(name)
            self.table.begin_cell(wide, tall, side)
        self._push(name, tag)

    def open_inline(self, name: str) -> None:
        """Open emphasis: `strong`, `em` or `del`."""
        self.end_text()
        self._enter()
        if name in self.open:
            self._push("-" + name, "")
            return
        if self.marks and self.marks[-1][1:] == (len(self.out) - 1, name) and not self.out[-1]:
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
        self._pop_to(nesting.closed_by(self.open, name))

    def open_caption(self) -> None:
        """Begin a paragraph above a table that has no row yet; a later caption is text of the table."""
        self.end_text()
        if self.open and self.open[-1] == "table" and self.last == "<table>":
            self._pop()
            self.open_block("p", "<p>")
            self.captioned = True

    def close_caption(self) -> None:
        """End the paragraph, and open its table again."""
        if self.captioned:
            self.captioned = False
            self.close("p")
            self.open_block("table", "<table>")

    def break_line(self) -> None:
        """Break the line; twice in a row, end the paragraph."""
        self.end_text()
        if self.cells:
            self.hold("<br>")
        elif self.flat:
            self._space()
        elif self.out and self.out[-1] == "<br>":
            self.out.pop()
            self._pop_to(nesting.ended_by(self.open, "p"))
            self._push("p", "<p>")
        else:
            if self.fresh and self.last != "<br>":
                return
            self._enter()
            self._add_break()

    def _add_break(self) -> None:
        """Break the line at the end of `out`, outside of marks and tags that begin there; not where a block begins."""
        place = len(self.out)
        after = max(self.marks[-1][1] + 1 if self.marks else 0, place - 20)  # not beyond a closing mark, nor forever
        while place - 1 in self.begun or (place > after and self._is_before_text(place - 1)):
            place -= 1
        if place and self.out[place - 1][:1] != "<":
            self.out[place - 1] = escape.line_end(self.out[place - 1].rstrip(" "))
            self.out.insert(place, "<br>")
            self.begun = [begun + (begun >= place) for begun in self.begun]
            self.fresh, self.spaced, self.last = True, True, "<br>"

    def _is_before_text(self, place: int) -> bool:
        """Whether a piece is white space or an opening tag that stays as it is."""
        held = placeholders.HELD.fullmatch(self.out[place])
        return self.out[place] in ("", " ") or (held is not None and self.kept[int(held[1])].startswith("<s"))

    def rule(self) -> None:
        """Add a horizontal rule, where a block is allowed."""
        self.end_text()
        if not self.flat:
            self._pop_to(nesting.ended_by(self.open, "p"))
            self._enter()
            self.crowded = self.crowded or "li" in self.open
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

    def raw(self, tag: str) -> None:
        """Keep a tag for which Markdown has nothing; a closing one never begins a line."""
        self.end_text()
        if tag[1] != "/" or not self.fresh:
            self.hold(tag)

    def hold_block(self, markdown: str, in_line: str) -> None:
        """Add finished Markdown as a block of its own; where no block is allowed, `in_line` instead."""
        self.end_text()
        if self.flat:
            self.hold(in_line)
            return
        self._pop_to(nesting.ended_by(self.open, "p"))
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
        if (
            text[0] in "([:" and self.out and self.out[-1][-1:] == "]" and self.out[-1][-2:] != "\\]"
        ):  # what would become a link
            self.out[-1] = self.out[-1][:-1] + "\\]"
        text = escape.text(text)
        if text[0] == "~" and self.out and self.out[-1][-1:] == "~":
            text = "\\" + text
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
        self._pop_to(0)
        self._settle()
        return placeholders.Document("".join(self.out), self.kept, self.crowded)

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

    def _pop_to(self, count: int) -> None:
        while len(self.open) > count:
            self._pop()

    def _push(self, name: str, tag: str) -> None:
        """Open an element, with its tag in `out` if it has one."""
        if len(self.open) >= _DEEPEST and name not in PARTS:
            return
        self.open.append(name)
        if name in FLAT:
            self.flat += 1
            if name in CELLS:
                self.cells += 1
                self.table.column += 1
        elif name == "table":
            self.table = Table()
        elif name == "tr":
            self.table.begin_row()
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
            self.table.finish(self.out)
        elif name == "tr":
            self.table.end_row()
        if name in HEADINGS and "#" in "".join(self.out[-2:]):
            place = len(self.out) - (1 if self.out[-1].strip() else 2)
            self.out[place] = escape.heading_end(self.out[place])
        if name not in CELLS and name != "li" and self.out[-1].startswith((f"<{name}>", f"<{name} ")):
            self.out.pop()  # it is empty
            if self.out and self.out[-1] == placeholders.SEPARATOR:
                self.out.pop()
        else:
            self.out.append(f"</{name}>")
            if name == "tr":
                self.table.rows.append((len(self.out) - 1, self.table.column))
        if name in BLOCKS:
            self._begin(self.out[-1] if self.out else "")
        for _ in range(self.table.wide - 1 if name in CELLS else 0):
            self._push_empty(name)

    def _push_empty(self, name: str) -> None:
        """An empty cell, where a wide or tall one goes on."""
        self.table.wide = 1
        self._push(name, f"<{name}>")
        self._pop()

    def _close_inline(self, name: str) -> None:
        """Close a link or emphasis: write the link's end, or leave an empty piece for the closing mark."""
        if name == "a":
            text = "".join(self.out[self.link + 1 :])
            shown = escape.text(self.address).translate(placeholders.TO_CONTROLS)
            inside = bool(self.marks) and self.marks[-1][1] > self.link
            if not text.replace("<br>", "").strip():
                del self.out[self.link :]
                if "<br>" in text:
                    self._add_break()
                elif text:
                    self.spaced = self.out[-1:] == [" "]
                    self._space()
            elif ":" in self.address and not inside and text == shown:
                self.out[self.link :] = [f"<{self.address}>".translate(placeholders.TO_CONTROLS)]
                while self.marked and self.marked[-1] >= self.link:
                    self.marked.pop()
            else:
                self.out.append(f"]({self.address})".translate(placeholders.TO_CONTROLS))
            return
        start, last = self.begun.pop(), self.out[-1]
        if last in ("", " ", "<br>") and not "".join(self.out[start:]).replace("<br>", "").strip():
            self.out[start:] = filter(None, self.out[start:])  # nothing to mark
            self.fresh = self.fresh or self.out[-1:] == ["<br>"] or self.last != ""
            return
        if last == "<br>":  # so does a line break, and white space
            self.marks.append((start, len(self.out) - 1, name))
            self.out[-1:] = ["", "<br>"]
            return
        spaced = last[-1:] == " "
        if spaced:  # white space belongs outside the marks
            self.out[-1] = escape.line_end(last[:-1])
        self.marks.append((start, len(self.out), name))
        self.out.append(" " if spaced else "")

    def _begin(self, last: str) -> None:
        """Settle the block or line before, and be at the start of a new one, after the tag `last`."""
        if self.out[-2:-1] == ["<br>"]:  # at the end of the block before
            del self.out[-2]
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
        emphasis.fill(self.out, self.marks)
        self.marks.clear()
