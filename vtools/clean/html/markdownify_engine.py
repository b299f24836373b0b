"""The reference engine: markdownify in our style, without its quadratic steps."""

# ruff: noqa: TID253
from typing import Any, ClassVar

from bs4 import Tag
from markdownify import ATX, MarkdownConverter


class _Tag(Tag):
    """markdownify asks every tag for a <pre> ancestor; our documents have none."""

    def find_parent(self, *args: Any, **kwargs: Any) -> None:
        return None


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
        self.lists: dict[int, tuple[int, bool]] = {}  # for each open list: its next number, whether it is loose

    def convert_li(self, el: Any, text: str, parent_tags: set[str]) -> str:
        text = text.strip()
        if id(el.parent) not in self.lists:
            items = (item for item in el.parent.children if isinstance(item, Tag))
            apart = any(child.name == "p" for item in items for child in item.children if isinstance(child, Tag))
            self.lists[id(el.parent)] = int(el.parent.get("start") or 1), apart
        number, apart = self.lists[id(el.parent)]
        self.lists[id(el.parent)] = number + 1, apart
        bullet = f"{number}. " if el.parent.name == "ol" else "- "
        indent = " " * len(bullet)
        lines = [indent + line if line else "" for line in text.split("\n")]
        return "\n".join([bullet + lines[0][len(bullet) :], *lines[1:]]) + ("\n\n" if apart else "\n")

    def convert_ul(self, el: Any, text: str, parent_tags: set[str]) -> str:
        if "li" not in parent_tags:
            return f"\n\n{text.rstrip()}\n\n"
        return f"\n{text.rstrip()}" + ("\n\n" if el.next_sibling else "")

    convert_ol = convert_ul

    def convert_td(self, el: Any, text: str, parent_tags: set[str]) -> str:
        return " " + text.strip().replace("\n", " ").replace("|", "\\|") + " |"

    convert_th = convert_td
