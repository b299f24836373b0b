"""ChatGPT's share pages, https://chatgpt.com/share/ID, and pages of ChatGPT saved by a browser.

Three forms. Older share pages hold their data as JSON in <script id="__NEXT_DATA__">, under props, pageProps,
serverResponse, data. Newer ones pass it to window.__reactRouterContext.streamController.enqueue("..."), as a flat
table, each value once, in which objects and lists hold the places of what is in them:

    [{"_1": 2, "_3": 4}, "title", "A reed", "linear_conversation", [5, 6], ...]

The key "_1" stands for the text at place 1; negative places are null, undefined and numbers that JSON has none for.
Below loaderData, routes/share..., serverResponse, data is what a conversation of ChatGPT's export is (`chatgpt.py`).
A page saved from the screen has the messages themselves, as elements with `data-message-author-role`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from vtools.fetch import html, turns
from vtools.records.jsonl import Record, Reject

NAME = "chatgpt-page"
KEYS = ("chatgpt_page",)
_ENQUEUED = re.compile(r'streamController\.enqueue\(\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
_LATER = re.compile(r"P\d+:")
_MOST = 20  # values read for each value of a table: places may be shared, and might be so without end


def sniff(value: Record) -> bool:
    return isinstance(value.get("chatgpt_page"), list)


def read(value: Record, branches: str) -> list[Record]:
    return [turns.record(value.get("id"), value["chatgpt_page"], title=value.get("title"))]


def sniff_page(page: str) -> bool:
    return "streamController.enqueue(" in page or "serverResponse" in page or "data-message-author-role" in page


def page_objects(page: str) -> Iterator[Record]:
    data = turns.inside(html.next_data(page), "props", "pageProps", "serverResponse", "data")
    data = data if isinstance(data, dict) else _enqueued(page)
    if data is not None:
        yield data
    elif messages := _shown(page):
        yield {"title": html.title(page), "chatgpt_page": messages}


def _enqueued(page: str) -> Record | None:
    """The conversation in the flat tables of a page. Raises Reject if they have no end."""
    table: list[Any] = []
    for literal in _ENQUEUED.findall(page):
        try:
            for line in json.loads(literal, strict=False).split("\n"):
                more = json.loads(_LATER.sub("", line, count=1)) if line.strip() else []
                table += more if isinstance(more, list) else []
        except (ValueError, RecursionError):
            continue
    for place, entry in enumerate(table):
        if isinstance(entry, dict) and (found := _conversation(table, place)):
            return found
    return None


def _conversation(table: list[Any], place: int) -> Record | None:
    """The object at a place, if it is a conversation."""
    keys = {_key(table, key) for key in table[place]}
    if not (keys >= {"title", "linear_conversation"} or keys >= {"mapping", "current_node"}):
        return None
    found = _Reader(table).value(place, 0)
    return found if isinstance(found, dict) else None


def _key(table: list[Any], key: str) -> Any:
    place = int(key[1:]) if re.fullmatch(r"_\d{1,9}", key) else len(table)
    found = table[place] if place < len(table) else None
    return found if isinstance(found, str) else None


class _Reader:
    def __init__(self, table: list[Any]) -> None:
        self.table, self.left = table, _MOST * len(table)

    def value(self, place: Any, depth: int) -> Any:
        if not isinstance(place, int) or not 0 <= place < len(self.table):
            return None
        self.left -= 1
        if self.left < 0 or depth > 60:
            raise Reject("bad_schema", "the table of the page refers to itself")
        entry = self.table[place]
        if isinstance(entry, dict):
            keys = ((_key(self.table, key), inner) for key, inner in entry.items())
            return {key: self.value(inner, depth + 1) for key, inner in keys if key is not None}
        if isinstance(entry, list):
            if entry and isinstance(entry[0], str):  # a date, a promise: ["D", 1700000000000]
                return entry[1] if len(entry) > 1 and entry[0] == "D" else None
            return [self.value(inner, depth + 1) for inner in entry]
        return entry


def _shown(page: str) -> list[dict[str, Any]]:
    """The messages of a page as a browser saved it: answers as HTML, which `vtools clean` converts."""
    messages = []
    for element in html.parsed(page).select("[data-message-author-role]"):
        role = element["data-message-author-role"]
        if role in ("user", "assistant"):
            body = element.select_one(".markdown")
            text = str(body) if role == "assistant" and body else element.get_text().strip()
            messages.append(turns.message(str(role), text, model=element.get("data-message-model-slug")))
    return messages
