"""Any HTML message, tag by tag, to the small document for an engine; handles code, math and page furniture."""

import html
from bisect import bisect

from vtools.clean.html import code, escape, placeholders, table, tags
from vtools.clean.html.layout import Layout


def document(text: str) -> placeholders.Document:
    """The document for an engine, whatever the message is."""
    return Page(text).document()


class Page:
    """One message, cut into its text and tags."""

    def __init__(self, text: str) -> None:
        self.parts = tags.CUT.split(text)  # alternating text and tags; tags have odd indices
        self.pairs: dict[str, dict[int, int]] | None = None
        self.annotations: list[int] | None = None
        self.layout = Layout()

    def document(self) -> placeholders.Document:
        """Read the message in one pass."""
        parts, count, place = self.parts, len(self.parts), 0
        while place < count:
            if parts[place]:
                self.layout.write(parts[place])
            place += 1
            if place == count:
                break
            name, kind = tags.kind(parts[place])
            if kind == "unwrap":
                place += 1
            else:
                place = (getattr(self, kind)(place, name) or place) + 1
        return self.layout.finish()

    # Every on_... handles the tag at index `place`; if it consumes more parts, it returns the index of the last.

    def on_block(self, place: int, name: str) -> None:
        attributes = tags.attributes(self.parts[place]) if name in ("ol", "td", "th") else {}
        if name in ("td", "th"):
            self.layout.open_block(name, f"<{name}>", *table.span(attributes), table.alignment(attributes))
            return
        start = attributes.get("start", "")
        numbered = name == "ol" and start.isdecimal() and len(start) < 10
        self.layout.open_block(name, f'<ol start="{start}">' if numbered else f"<{name}>")

    def on_inline(self, place: int, name: str) -> None:
        self.layout.open_inline(name)

    def on_a(self, place: int, name: str) -> None:
        self.layout.open_link(escape.address(tags.attributes(self.parts[place]).get("href", "")))

    def on_caption(self, place: int, name: str) -> None:
        self.layout.open_caption()

    def on_close(self, place: int, name: str) -> None:
        if name == "caption":
            self.layout.close_caption()
        else:
            self.layout.close(name)

    def on_pre(self, place: int, name: str) -> int:
        end = self.matching("pre").get(place, len(self.parts))
        body, language = code.preformatted("".join(self.parts[place:end]))
        if body:
            self.layout.hold_block(escape.fence(body, language), escape.code(body))
        else:
            self.layout.end_text()
        return end

    def on_code(self, place: int, name: str) -> int | None:
        end = self.matching(name).get(place)
        if end is not None:
            self.layout.hold(escape.code(code.inner("".join(self.parts[place + 1 : end]))))
        return end

    def on_katex(self, place: int, name: str) -> int | None:
        end = self.matching("span").get(place, len(self.parts))
        if self.annotations is None:
            self.annotations = [at for at in range(1, len(self.parts), 2) if self.parts[at].startswith("<annotation")]
        nearest = bisect(self.annotations, place)
        if nearest == len(self.annotations) or self.annotations[nearest] > end:
            return None
        tex = html.unescape(self.parts[self.annotations[nearest] + 1]).strip()
        if not tex:
            self.layout.end_text()
        elif "katex-display" not in self.parts[place]:
            self.layout.hold(f"${tex}$".replace("\n", " "))
        elif "\n" in tex:
            self.layout.hold_block(f"$$\n{tex}\n$$", f"$${tex}$$")
        else:
            self.layout.hold(f"$${tex}$$")
        return end

    def on_junk(self, place: int, name: str) -> int | None:
        return self.matching(name).get(place)

    def on_br(self, place: int, name: str) -> None:
        self.layout.break_line()

    def on_hr(self, place: int, name: str) -> None:
        self.layout.rule()

    def on_img(self, place: int, name: str) -> None:
        attributes = tags.attributes(self.parts[place])
        address = escape.address(attributes.get("src", ""))
        if address:
            self.layout.hold(f"![{escape.brackets(escape.text(attributes.get('alt', '')))}]({address})")
        else:
            self.layout.end_text()

    def on_input(self, place: int, name: str) -> None:
        if "checkbox" in self.parts[place]:
            self.layout.hold("[x]" if " checked" in self.parts[place] else "[ ]")
        else:
            self.layout.end_text()

    def on_raw(self, place: int, name: str) -> None:
        """Markdown has no superscript: the tag stays."""
        self.layout.raw(("</" if self.parts[place][1] == "/" else "<") + name + ">")

    def matching(self, name: str) -> dict[int, int]:
        """The index of the closing tag for each opening tag of a name; one pass finds them for all names."""
        if self.pairs is None:
            self.pairs = {}
            opened: dict[str, list[int]] = {}
            for place in range(1, len(self.parts), 2):
                tag = self.parts[place]
                found = tags.name(tag)
                if found not in tags.PAIRED:
                    continue
                if tag[1] != "/":
                    opened.setdefault(found, []).append(place)
                elif opened.get(found):
                    self.pairs.setdefault(found, {})[opened[found].pop()] = place
        return self.pairs.get(name, {})
