"""Fenced code is found where a parser of Markdown finds it."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from vtools.records import markdown

CODE = "a = 1\n\n# no heading"


def fenced(text: str) -> list[tuple[int, int]]:
    """The first line of each block, and the line after it."""
    return [(text.count("\n", 0, begin), len(text[:after].splitlines())) for begin, after in markdown.fences(text)]


@pytest.mark.parametrize(
    "text",
    [
        f"A word.\n```python\n{CODE}\n```\nAnother.",
        f"~~~ a `b`\n{CODE}\n```\n~~~~  \nAnother.\n\n```\n{CODE}\n```",
        f"````\n```\n{CODE}\n```\n````\n",
        f"```\n{CODE}\n```python\nstill code\n```\nAnother.",
        f"   ```\n{CODE}\n  ```\nAnother.",
        f"```\n{CODE}\n- ```\n```\nAnother.",
        "> ```\n> a = 1\n> ```\nAnother.",
        "1. One:\n\n   ```sh\n   ls\n   ```\n\n   - Deep:\n\n      ```sh\n      ls\n      ```\n2. Two.",
        "- ```sh\n  ls\n  ```\n- > ~~~\n  > ls\n  > ~~~\n",
        "```\nnever closed",
        "No ```fence``` here.\n```nor` here\n``\n~~strike~~",
        "",
    ],
)
def test_fences_are_those_of_a_commonmark_parser(text):
    parsed = [token.map for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]
    assert fenced(text) == list(map(tuple, parsed))
