"""`sharegpt:ID`, `sharegpt:new`, `sharegpt:top`: conversations of a mirror that speaks ShareGPT's API, and its lists.

    BASE/c/ID                                        the page of a conversation (`sources/sharegpt.py`)
    BASE/api/conversations?type=new or top&page=N    [{"id", "title", "saves", "views", "createdAt"}], 50 a page

The site itself is gone, so BASE is named by --api-base. Its first page is 0, but some mirrors count from 1.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from urllib.parse import quote

from vtools.process import UsageFailure

PREFIX = "sharegpt:"
LISTS = ("sharegpt:new", "sharegpt:top")


def addressed(names: list[str], base: str | None) -> list[str]:
    """The sources, each conversation of the mirror as the URL of its page. Raises UsageFailure."""
    if base is not None and not base.startswith(("http://", "https://")):
        raise UsageFailure(f"--api-base {base}: write the URL of a mirror, as in https://mirror.example.org")
    own = [name for name in names if name.startswith(PREFIX)]
    if own and base is None:
        raise UsageFailure(f"{own[0]}: ShareGPT's site is gone; name a mirror that speaks its API: --api-base URL")
    if base is not None and not own:
        raise UsageFailure("--api-base is the mirror that sharegpt:ID is asked from, and no source is one")
    return [_page(name, base) if base and name.startswith(PREFIX) and name not in LISTS else name for name in names]


def listed(name: str, base: str, read: Callable[[str], bytes]) -> Iterator[str]:
    """The URLs of the conversations in a list, each once, page by page, until a page has no new one.

    Raises what `read` does, and ValueError for what is no list.
    """
    seen: set[str] = set()
    for number in itertools.count():
        kind = name.removeprefix(PREFIX)
        rows = json.loads(read(f"{base.rstrip('/')}/api/conversations?type={kind}&page={number}"))
        if not isinstance(rows, list):
            raise ValueError("no list")
        there = (row.get("id") for row in rows if isinstance(row, dict))
        new = [each for each in dict.fromkeys(there) if isinstance(each, str) and each not in seen]
        if not new and number > 1:
            return
        seen.update(new)
        yield from (_page(each, base) for each in new)


def _page(name: str, base: str) -> str:
    return f"{base.rstrip('/')}/c/{quote(name.removeprefix(PREFIX), safe='')}"
