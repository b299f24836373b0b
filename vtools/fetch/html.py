"""HTML pages as the objects of the conversations in them."""

import json
import re
from collections.abc import Iterator
from typing import Any

from vtools.records import jsonl, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.unpacking import Torn

LARGEST = 1 << 26  # bytes
_NEXT = re.compile(r'<script id="__NEXT_DATA__"[^>]*>(.*?)</script>', re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>([^<]*)</title>", re.IGNORECASE)


def values(sources: Any, chunks: Iterator[bytes], file: str) -> Iterator[streams.Value]:
    """The objects that the first of these sources that knows a page finds in it; the page itself if none does."""
    raw = b""
    try:
        for chunk in chunks:
            raw += chunk
            if len(raw) > LARGEST:
                yield streams.Value(raw, file, 1, foreign=f"a page of more than {LARGEST >> 20} MB")
                return
    except Torn as torn:
        yield streams.Value(raw, file, 1, torn=str(torn))
        return
    page, number = raw.decode("utf-8", "replace"), 0
    try:
        for source in sources:
            for found in source.page_objects(page) if source.sniff_page(page) else ():
                number += 1
                yield streams.Value(jsonl.dumps(found), file, number)
            if number:
                return
    except (Reject, RecursionError) as error:
        yield streams.Value(raw, file, 1, foreign=getattr(error, "detail", "a page nested too deeply"))
        return
    why = "a page in which no conversation is found; pages of a login, a challenge or a removed chat have none"
    yield streams.Value(raw, file, 1, foreign=why)


def next_data(page: str) -> Record | None:
    """The data that pages made with Next.js carry."""
    found = _NEXT.search(page)
    try:
        data = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def title(page: str) -> str | None:
    """The page's title."""
    import html

    found = _TITLE.search(page)
    return html.unescape(found[1]).strip() if found else None


def parsed(page: str) -> Any:
    """The page as a tree of elements."""
    import bs4

    return bs4.BeautifulSoup(page, "html.parser")
