"""Any HTML message, tag by tag, to the small document for an engine: code, math and noise are settled here."""

from __future__ import annotations

import html
from bisect import bisect

from vtools.clean.html import code, escape, placeholders, tags
from vtools.clean.html.layout import Layout
from vtools.clean.html.tags import BLOCKS, INLINE, PARTS, TABLE


def document(text: str) -> placeholders.Document:
    """The document for an engine, whatever the message is."""
    layout = Page(text).layout
    return placeholders.Document("".join(layout.out), layout.kept)


class Page:
    """One message, read when it is made; what came of it is in `layout`."""

    def __init__(self, text: str) -> None:
        self.parts = tags.CUT.split(text)  # text and tags by turns; tags are at odd places
        self.pairs: dict[str, dict[int, int]] = {}
        self.annotations: list[int] | None = None
        self.layout = Layout()
        self.walk()

    def walk(self) -> None:
        parts, count, place = self.parts, len(self.parts), 0
        while place < count:
            if parts[place]:
                self.layout.text.append(parts[place])
            place += 1
            if place == count:
                break
            name, kind = tags.kind(parts[place])
            if kind == "unwrap":
                place += 1
            else:
                place = getattr(self, kind)(place, name) + 1
        self.layout.flush()
        while self.layout.open:
            self.layout.pop()
        self.layout.settle()

    # Every on_... handles the tag at a place and returns the place of the last tag it has used up.

    def on_block(self, place: int, name: str) -> int:
        self.layout.flush()
        self.layout.make_room(name)
        if name in ("td", "th", "tr") and not self.layout.within(("table",)):
            return place
        if name not in ("tr", "td", "th"):
            self.layout.enter(("table", "tr"))
        if self.layout.flat:
            self.layout.space()
            self.layout.push("-" + name, "")
            return place
        if name == "li" and not self.layout.within(("ul", "ol")):
            self.layout.push("ul", "<ul>")
        elif name in ("td", "th") and not self.layout.within(("tr",), "table"):
            self.layout.push("tr", "<tr>")
        elif name not in PARTS:
            self.layout.enter()
        attributes = tags.attributes(self.parts[place]) if name in ("ol", "td", "th") else {}
        if name in ("ul", "ol") and self.layout.last in ("</ul>", "</ol>"):
            self.layout.out.append(placeholders.SEPARATOR)
        if name in ("td", "th"):
            span = attributes.get("colspan", "")
            for _ in range(min(int(span), 100) - 1 if span.isdecimal() and len(span) < 4 else 0):
                self.layout.push(name, f"<{name}>")
                self.layout.pop()
        start = attributes.get("start", "")
        self.layout.push(name, f'<ol start="{start}">' if start.isdecimal() and len(start) < 10 else f"<{name}>")
        return place

    def on_inline(self, place: int, name: str) -> int:
        self.layout.flush()
        self.layout.enter()
        if name in self.layout.open:
            self.layout.push("-" + name, "")
        elif (
            self.layout.marks
            and self.layout.marks[-1][1:] == (len(self.layout.out) - 1, name)
            and not self.layout.out[-1]
        ):
            self.layout.begun.append(self.layout.marks.pop()[0])  # two beside each other are one
            self.layout.out.pop()
            self.layout.open.append(name)
        else:
            self.layout.begun.append(len(self.layout.out))
            self.layout.out.append("")
            self.layout.open.append(name)
        self.layout.fresh = False
        return place

    def on_a(self, place: int, name: str) -> int:
        self.layout.flush()
        self.layout.enter()
        if "a" in self.layout.open:
            self.on_close(place, "a")
        self.layout.address = escape.address(tags.attributes(self.parts[place]).get("href", ""))
        if self.layout.address:
            if self.layout.out and self.layout.out[-1].endswith("!"):  # `![` would be a picture
                self.layout.out[-1] = self.layout.out[-1][:-1] + "\\!"
            self.layout.link = len(self.layout.out)
            self.layout.push("a", "[")
            self.layout.fresh = False
        else:
            self.layout.push("-a", "")
        return place

    def on_close(self, place: int, name: str) -> int:
        self.layout.flush()
        for depth in range(len(self.layout.open) - 1, -1, -1):
            other = self.layout.open[depth].lstrip("-")
            if other == name:
                while len(self.layout.open) > depth:
                    self.layout.pop()
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
        body, language = code.preformatted("".join(self.parts[place:end]))
        self.layout.flush()
        if body and self.layout.flat:
            self.layout.hold(escape.code(body))
        elif body:
            self.layout.make_room("p")
            self.layout.hold(escape.fence(body, language), block=True)
        return end

    def on_code(self, place: int, name: str) -> int:
        end = self.matching(name).get(place)
        if end is None:
            return place
        self.layout.flush()
        self.layout.hold(escape.code(code.inner("".join(self.parts[place + 1 : end]))))
        return end

    def on_katex(self, place: int, name: str) -> int:
        end = self.matching("span").get(place, len(self.parts))
        if self.annotations is None:
            self.annotations = [at for at in range(1, len(self.parts), 2) if self.parts[at].startswith("<annotation")]
        nearest = bisect(self.annotations, place)
        if nearest == len(self.annotations) or self.annotations[nearest] > end:
            return place
        tex = html.unescape(self.parts[self.annotations[nearest] + 1]).strip()
        self.layout.flush()
        if not tex:
            pass
        elif "katex-display" not in self.parts[place]:
            self.layout.hold(f"${tex}$".replace("\n", " "))
        elif "\n" in tex and not self.layout.flat:
            self.layout.make_room("p")
            self.layout.hold(f"$$\n{tex}\n$$", block=True)
        else:
            self.layout.hold(f"$${tex}$$")
        return end

    def on_junk(self, place: int, name: str) -> int:
        return self.matching(name).get(place, place)

    def on_br(self, place: int, name: str) -> int:
        self.layout.flush()
        if self.layout.cells:
            self.layout.hold("<br>")
        elif self.layout.flat:
            self.layout.space()
        else:
            if self.layout.out and self.layout.out[-1] == "<br>":  # two are a new paragraph
                self.layout.out.pop()
                self.layout.make_room("p")
                self.layout.push("p", "<p>")
                return place
            if self.layout.out and self.layout.out[-1][-1:] == " ":
                self.layout.out[-1] = self.layout.out[-1].rstrip(" ")
            if self.layout.fresh and self.layout.last != "<br>":
                return place
            self.layout.enter()
            self.layout.out.append("<br>")
            self.layout.fresh, self.layout.spaced, self.layout.last = True, True, "<br>"
        return place

    def on_hr(self, place: int, name: str) -> int:
        self.layout.flush()
        if not self.layout.flat:
            self.layout.make_room("p")
            self.layout.enter()
            self.layout.out.append("<hr>")
            self.layout.begin("<hr>")
        return place

    def on_img(self, place: int, name: str) -> int:
        attributes = tags.attributes(self.parts[place])
        address = escape.address(attributes.get("src", ""))
        self.layout.flush()
        if address:
            self.layout.hold(f"![{escape.brackets(escape.text(attributes.get('alt', '')))}]({address})")
        return place

    def on_input(self, place: int, name: str) -> int:
        self.layout.flush()
        if "checkbox" in self.parts[place]:
            self.layout.hold("[x]" if " checked" in self.parts[place] else "[ ]")
        return place

    def on_raw(self, place: int, name: str) -> int:
        """Markdown has no superscript: the tag stays."""
        self.layout.flush()
        self.layout.hold(("</" if self.parts[place][1] == "/" else "<") + name + ">")
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
