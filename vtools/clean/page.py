"""One HTML message on its way to Markdown: code, math and noise are settled here, an engine lays out what remains.

The engine sees a small, well-formed document. Whatever must survive byte for byte (code, math) stands in it as a
placeholder, text comes escaped for Markdown already, and `<`, `&` and `"` of the text are control characters, which no
message holds; so both engines give the same text.
"""

from __future__ import annotations

import html
import re
from bisect import bisect

from vtools.clean import escape, tags
from vtools.clean.html import CONTROLS
from vtools.clean.tags import BLOCKS, CELLS, FLAT, HEADINGS, INLINE, PARTS, TABLE

_LANGUAGE = re.compile(r"\b(?:language|lang)-([^\s\"']+)")
_LABEL = re.compile(r"[\w+#.-]{1,32}")
_COPY = re.compile(r"\s*(?:Copy code|Copy|Edit)+\s*\Z")
_UNUSUAL = re.compile("[\t\n\r\f\xa0]")
_SPACES = re.compile("[ \t\n\r\f\xa0]{2,}|[\t\n\r\f\xa0]")
# A placeholder is in brackets because engines look at the character beside emphasis, and what is held is punctuation.
_HELD = re.compile("\\(\x02(\\d+)\x03\\)")
_HELD_BLOCK = re.compile("^([ >\\d.)-]*)\\(\x02(\\d+)\x03\\) *$", re.MULTILINE)
_SEPARATOR = re.compile("^[ >]*\x02\x03\n(?:[ >]*\n)?", re.MULTILINE)
_TO_CONTROLS = {ord("<"): "\x04", ord("&"): "\x05", ord('"'): "\x06"}
_FROM_CONTROLS = {4: "<", 5: "&", 6: '"'}

_MARKS = {"strong": "**", "em": "*", "del": "~~"}
_DEEPEST = 100  # levels kept; text below is kept on the last of them


class Page:
    """One message on its way through: `out` is the document for the engine, `held` what its placeholders stand for."""

    def __init__(self, text: str) -> None:
        self.parts = tags.CUT.split(text)  # text and tags by turns; tags are at odd places
        self.out: list[str] = []
        self.held: list[str] = []
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
        self.pairs: dict[str, dict[int, int]] = {}
        self.annotations: list[int] | None = None
        self.walk()

    def walk(self) -> None:
        parts, count, place = self.parts, len(self.parts), 0
        while place < count:
            if parts[place]:
                self.text.append(parts[place])
            place += 1
            if place == count:
                break
            name, kind = tags.kind(parts[place])
            if kind == "unwrap":
                place += 1
            else:
                place = getattr(self, kind)(place, name) + 1
        self.flush()
        while self.open:
            self.pop()

    # Every on_... handles the tag at a place and returns the place of the last tag it has used up.

    def on_block(self, place: int, name: str) -> int:
        self.flush()
        self.make_room(name)
        if name in ("td", "th", "tr") and not self.within(("table",)):
            return place
        if name not in ("tr", "td", "th"):
            self.enter(("table", "tr"))
        if self.flat:
            self.space()
            self.push("-" + name, "")
            return place
        if name == "li" and not self.within(("ul", "ol")):
            self.push("ul", "<ul>")
        elif name in ("td", "th") and not self.within(("tr",), "table"):
            self.push("tr", "<tr>")
        elif name not in PARTS:
            self.enter()
        attributes = tags.attributes(self.parts[place]) if name in ("ol", "td", "th") else {}
        if name in ("ul", "ol") and self.last in ("</ul>", "</ol>"):
            self.out.append("<p>\x02\x03</p>")
        if name in ("td", "th"):
            span = attributes.get("colspan", "")
            for _ in range(min(int(span), 100) - 1 if span.isdecimal() and len(span) < 4 else 0):
                self.push(name, f"<{name}>")
                self.pop()
        start = attributes.get("start", "")
        self.push(name, f'<ol start="{start}">' if start.isdecimal() and len(start) < 10 else f"<{name}>")
        return place

    def on_inline(self, place: int, name: str) -> int:
        self.flush()
        self.enter()
        if name in self.open:
            self.push("-" + name, "")
        elif self.marks and self.marks[-1][1:] == (len(self.out) - 1, name) and not self.out[-1]:
            self.begun.append(self.marks.pop()[0])  # two beside each other are one
            self.out.pop()
            self.open.append(name)
        else:
            self.begun.append(len(self.out))
            self.out.append("")
            self.open.append(name)
        self.fresh = False
        return place

    def on_a(self, place: int, name: str) -> int:
        self.flush()
        self.enter()
        if "a" in self.open:
            self.on_close(place, "a")
        self.address = escape.address(tags.attributes(self.parts[place]).get("href", ""))
        if self.address:
            if self.out and self.out[-1].endswith("!"):  # `![` would be a picture
                self.out[-1] = self.out[-1][:-1] + "\\!"
            self.link = len(self.out)
            self.push("a", "[")
            self.fresh = False
        else:
            self.push("-a", "")
        return place

    def on_close(self, place: int, name: str) -> int:
        self.flush()
        for depth in range(len(self.open) - 1, -1, -1):
            other = self.open[depth].lstrip("-")
            if other == name:
                while len(self.open) > depth:
                    self.pop()
                break
            if (
                (name in INLINE and other in BLOCKS)
                or (other in TABLE and name not in TABLE)
                or (name == "li" and other in ("ul", "ol"))
                or (name in TABLE and other == "table")
            ):
                break
        return place

    def on_pre(self, place: int, name: str) -> int:
        end = self.matching("pre").get(place, len(self.parts))
        start, stop = place, end
        codes = self.matching("code")
        for inner in range(place + 2, end, 2):
            if self.parts[inner][:5].lower() == "<code":
                start, stop = inner, min(end, codes.get(inner, end))
                break
        body = self.inner_text(start, stop, "\n").replace("\r\n", "\n")
        language = _LANGUAGE.search(self.parts[start]) if start != place else None
        label = ""
        if start == place:
            body = body.removeprefix("\n")
        elif language:
            label = html.unescape(language[1])
        else:
            header = (text for text in self.parts[place + 1 : start : 2] if text.strip())
            label = _COPY.sub("", html.unescape(next(header, ""))).strip()
        if not _LABEL.fullmatch(label):
            label = ""
        self.flush()
        if body.strip():
            if self.flat:
                self.hold(escape.code(body))
            else:
                self.make_room("p")
                self.hold(escape.fence(body.removesuffix("\n"), label), block=True)
        return end

    def on_code(self, place: int, name: str) -> int:
        end = self.matching(name).get(place)
        if end is None:
            return place
        self.flush()
        self.hold(escape.code(self.inner_text(place, end, " ")))
        return end

    def on_katex(self, place: int, name: str) -> int:
        end = self.matching("span").get(place, len(self.parts))
        if self.annotations is None:
            self.annotations = [at for at in range(1, len(self.parts), 2) if self.parts[at].startswith("<annotation")]
        nearest = bisect(self.annotations, place)
        if nearest == len(self.annotations) or self.annotations[nearest] > end:
            return place
        tex = html.unescape(self.parts[self.annotations[nearest] + 1]).strip()
        self.flush()
        if not tex:
            pass
        elif "katex-display" not in self.parts[place]:
            self.hold(f"${tex}$".replace("\n", " "))
        elif "\n" in tex and not self.flat:
            self.make_room("p")
            self.hold(f"$$\n{tex}\n$$", block=True)
        else:
            self.hold(f"$${tex}$$")
        return end

    def on_junk(self, place: int, name: str) -> int:
        return self.matching(name).get(place, place)

    def on_br(self, place: int, name: str) -> int:
        self.flush()
        if self.cells:
            self.hold("<br>")
        elif self.flat:
            self.space()
        else:
            if self.out and self.out[-1] == "<br>":  # two are a new paragraph
                self.out.pop()
                self.make_room("p")
                self.push("p", "<p>")
                return place
            if self.out and self.out[-1][-1:] == " ":
                self.out[-1] = self.out[-1].rstrip(" ")
            if self.fresh and self.last != "<br>":
                return place
            self.enter()
            self.out.append("<br>")
            self.fresh, self.spaced, self.last = True, True, "<br>"
        return place

    def on_hr(self, place: int, name: str) -> int:
        self.flush()
        if not self.flat:
            self.make_room("p")
            self.enter()
            self.out.append("<hr>")
            self.begin("<hr>")
        return place

    def on_img(self, place: int, name: str) -> int:
        attributes = tags.attributes(self.parts[place])
        address = escape.address(attributes.get("src", ""))
        self.flush()
        if address:
            self.hold(f"![{escape.brackets(escape.text(attributes.get('alt', '')))}]({address})")
        return place

    def on_input(self, place: int, name: str) -> int:
        self.flush()
        if "checkbox" in self.parts[place]:
            self.hold("[x]" if " checked" in self.parts[place] else "[ ]")
        return place

    def on_raw(self, place: int, name: str) -> int:
        """Markdown has no superscript: the tag stays."""
        self.flush()
        self.hold(("</" if self.parts[place][1] == "/" else "<") + name + ">")
        return place

    def matching(self, name: str) -> dict[int, int]:
        """The place of the closing tag for each opening tag of a name: all of them in one pass."""
        if name not in self.pairs:
            pairs = self.pairs[name] = {}
            opened: list[int] = []
            prefix, closing = "<" + name, "</" + name
            for place in range(1, len(self.parts), 2):
                tag = self.parts[place].lower()
                if tag.startswith(prefix):
                    opened.append(place)
                elif tag.startswith(closing) and opened:
                    pairs[opened.pop()] = place
        return self.pairs[name]

    def inner_text(self, start: int, end: int, newline: str) -> str:
        texts = self.parts[start + 1 : end : 2]
        if any(tag[:3].lower() == "<br" for tag in self.parts[start + 2 : end : 2]):
            tags = [newline if tag[:3].lower() == "<br" else "" for tag in self.parts[start + 2 : end : 2]]
            texts = [piece for pair in zip(texts, [*tags, ""], strict=False) for piece in pair]
        return CONTROLS.sub("", html.unescape("".join(texts)))

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
            elif ":" in self.address and not inside and text == escape.text(self.address).translate(_TO_CONTROLS):
                self.out[self.link :] = [f"<{self.address}>".translate(_TO_CONTROLS)]
                self.marked = [place for place in self.marked if place < self.link]
            else:
                self.out.append(f"]({self.address})".translate(_TO_CONTROLS))
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
        token = f"(\x02{len(self.held)}\x03)"
        if block:
            self.out.append(f"<p>{token}</p>")
            self.begin("</p>")
        else:
            if text[:1] == "`" and self.out and self.out[-1].endswith("\x03)") and self.held[-1][-1:] == "`":
                token = " " + token
            self.out.append(token)
            self.fresh, self.spaced, self.last = False, False, ""
        self.held.append(text)

    def flush(self) -> None:
        """Move the text read so far into the document."""
        if not self.text:
            return
        text = "".join(self.text)
        self.text.clear()
        if "&" in text:
            text = html.unescape(text)
        if "  " in text or _UNUSUAL.search(text):
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
        self.out.append(text.translate(_TO_CONTROLS) if "<" in text or "&" in text else text)
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

    def restore(self, markdown: str) -> str:
        """Put what was held back in the engine's result; blocks are indented as their first line is."""
        markdown = _SEPARATOR.sub("", markdown).translate(_FROM_CONTROLS)

        def block(match: re.Match[str]) -> str:
            first, *rest = self.held[int(match[2])].split("\n")
            indent = re.sub("[^>]", " ", match[1])
            blank = indent.rstrip()
            return "\n".join([match[1] + first, *(indent + line if line else blank for line in rest)])

        markdown = _HELD_BLOCK.sub(block, markdown)
        return _HELD.sub(lambda match: self.held[int(match[1])], markdown).strip("\n ")
