"""HTML pages as the objects of the conversations in them."""

import json
import re
from collections.abc import Iterator
from typing import Any

from vtools.records import jsonl, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.unpacking import Torn

LARGEST = 1 << 26  # bytes
_TITLE = re.compile(r"<title[^<>]*+>([^<]*+)</title>", re.IGNORECASE)


def values(sources: Any, chunks: Iterator[bytes], file: str) -> Iterator[streams.Value]:
    """The objects that the first of these sources that knows a page finds in it; the page itself if none does."""
    pieces, size = [], 0
    try:
        for chunk in chunks:
            pieces.append(chunk)
            size += len(chunk)
            if size > LARGEST:
                yield streams.Value(b"", file, 1, foreign=f"an HTML page of more than {LARGEST >> 20} MB")
                return
    except Torn as torn:
        yield streams.Value(b"".join(pieces), file, 1, torn=str(torn))
        return
    raw = b"".join(pieces)
    page, number = raw.decode("utf-8", "replace"), 0
    try:
        for source in sources:
            for found in source.page_objects(page) if source.sniff_page(page) else ():
                number += 1
                yield streams.Value(jsonl.dumps(found), file, number)
            if number:
                return
    except (Reject, RecursionError) as error:
        yield streams.Value(raw, file, 1, foreign=getattr(error, "detail", "an HTML page nested too deeply"))
        return
    why = "an HTML page, not JSON, without a conversation, as those of a login, a challenge or a removed chat are"
    yield streams.Value(raw, file, 1, foreign=why)


def next_data(page: str) -> Record | None:
    """The data that pages made with Next.js carry."""
    _, _, rest = page.partition('<script id="__NEXT_DATA__"')
    text = rest.partition("</script>")[0].partition(">")[2]
    try:
        data = json.loads(text) if text else None
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
