"""ShareGPT's saved pages, https://sharegpt.com/c/ID, and the JSON of its API.

    {"id", "content": {"title", "avatarUrl", "model", "items": [{"from": "human" or "gpt", "value"}]}, "views"}

Pages hold it in <script id="__NEXT_DATA__">, under props, pageProps. The API's lists, {"id", "title", "saves", "views",
"createdAt"}, have no turns. The site itself is gone since 2024; its pages are in archives and mirrors.
"""

from collections.abc import Iterator

from vtools.fetch import html, turns
from vtools.records import message
from vtools.records.jsonl import Record, Reject

NAME = "sharegpt-page"
KEYS = ("content", "createdAt")


def sniff(value: Record) -> bool:
    content = value.get("content")
    return "items" in content if isinstance(content, dict) else "id" in value and "saves" in value


def read(value: Record, branches: str) -> list[Record]:
    content = value.get("content")
    if not isinstance(content, dict):
        raise Reject("bad_schema", "an entry of a list, without its conversation; fetch the page of its id")
    items = content["items"] if isinstance(content["items"], list) else []
    model = content.get("model")
    return [
        turns.record(
            value.get("id"), message.messages_of(items, "items"), title=content.get("title"),
            created=value.get("createdAt"), model=model if isinstance(model, str) else None,
        )
    ]  # fmt: skip


def sniff_page(page: str) -> bool:
    return '"items"' in page and '"pageProps"' in page


def page_objects(page: str) -> Iterator[Record]:
    data = turns.inside(html.next_data(page), "props", "pageProps")
    if isinstance(turns.inside(data, "content", "items"), list):
        yield data
