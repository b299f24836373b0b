"""The reference engine: markdownify in our style, without its quadratic steps."""

# ruff: noqa: TID253
import re
from typing import Any, ClassVar

from bs4 import Tag
from markdownify import ATX, MarkdownConverter

_OWN_LINE = ("ul", "ol", "blockquote", "hr", "table")  # an item that begins with one begins on the next line
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LIST_EDGE = "\x10"  # around a list inside of an item
_EMPTY_ITEM = re.compile(r"\n*(?:-|\d+\.) *\n")
_NESTED = re.compile(f"\n*{_LIST_EDGE}+\n*")


class _Tag(Tag):
    """markdownify asks every tag for a <pre> ancestor; our documents have none."""

    def find_parent(self, *args: Any, **kwargs: Any) -> None:
        return None


def _blocks(element: Any) -> str:
    """The blocks of an item by letter: p for a paragraph or a line of text, b for any other."""
    found, in_line = "", False
    for child in element.children:
        name = child.name if isinstance(child, Tag) else ""
        if name == "div":
            found, in_line = found + _blocks(child), False
        elif name == "p" or name in _OWN_LINE or name in _HEADINGS:
            found, in_line = found + ("p" if name == "p" else "b"), False
        elif name or str(child).strip():
            found, in_line = found + ("" if in_line else "p"), True
    return found


class Converter(MarkdownConverter):
    """The converter of one document; numbers list items as they come."""

    # Not DefaultOptions: options set there are silently ignored.
    class Options:
        bs4_options: ClassVar = {"features": "html.parser", "element_classes": {Tag: _Tag}}
        bullets = "-"
        escape_asterisks = False
        escape_underscores = False
        heading_style = ATX
        table_infer_header = True

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[int, int] = {}  # for each list, its next number
        self.loose: dict[int, bool] = {}  # for each list, whether an item has a paragraph after another block
        # For each list, whether the list that ends it (itself or an inner one) is loose.
        self.ends: dict[int, bool] = {}

    def convert_li(self, el: Any, text: str, parent_tags: set[str]) -> str:
        number = self.numbers.get(id(el.parent)) or int(el.parent.get("start") or 1)
        self.numbers[id(el.parent)] = number + 1
        loose = self.is_loose(el.parent)
        text = _NESTED.sub("\n\n" if loose else "\n", text.strip().strip(_LIST_EDGE)).strip()
        bullet = f"{number}. " if el.parent.name == "ol" else "- "
        indent = " " * len(bullet)
        first = next((child for child in el.children if isinstance(child, Tag)), None)  # `find` costs twenty times more
        if first is not None and first.name in _OWN_LINE and not str(first.previous_sibling or "").strip():
            text = "\n" + text
        lines = [indent + line if line else "" for line in text.split("\n")]
        last, holder = el.contents[-1] if el.contents else None, el.parent.parent
        ends = self.ends.get(id(last))  # None unless the item ends with a list
        self.ends[id(el.parent)] = loose if ends is None else ends
        apart = loose or bool(ends)
        if holder is not None and holder.name == "li":  # in an item of a list that is not loose, no empty lines
            apart = apart and self.is_loose(holder.parent)
        return "\n".join([bullet + lines[0][len(bullet) :], *lines[1:]]) + ("\n\n" if apart else "\n")

    def is_loose(self, lists: Any) -> bool:
        if id(lists) not in self.loose:
            items = (item for item in lists.children if isinstance(item, Tag))
            self.loose[id(lists)] = any(_blocks(item).find("p", 1) > 0 for item in items)
        return self.loose[id(lists)]

    def convert_ul(self, el: Any, text: str, parent_tags: set[str]) -> str:
        edge = _LIST_EDGE if "li" in parent_tags else "\n\n"
        before = "\n\n" if _EMPTY_ITEM.match(text) else edge  # an empty item cannot end a paragraph
        return f"{before}{text.rstrip()}{edge}"

    convert_ol = convert_ul

    def convert_blockquote(self, el: Any, text: str, parent_tags: set[str]) -> str:
        return "\n\n" + super().convert_blockquote(el, text, parent_tags).strip("\n") + "\n\n"  # type: ignore[misc]

    def convert_td(self, el: Any, text: str, parent_tags: set[str]) -> str:
        return " " + text.strip().replace("\n", " ").replace("|", "\\|") + " |"

    convert_th = convert_td
