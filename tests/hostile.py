"""Answers that some HTML or Markdown converter takes more than linear time for, or crashes at."""

from collections.abc import Callable

ANSWERS: dict[str, tuple[int, Callable[[int], str]]] = {  # an answer of n, and the n of the bad-input matrix
    "backticks": (20_000, lambda n: "<p>" + "`" * n + "</p><pre><code>x</code></pre>" + "`" * n),
    "code blocks": (800, lambda n: "<p>x</p>" + "<pre><code>`x`\n</code></pre>" * n),
    "<": (1_000_000, lambda n: "<p>x" + "<" * n),
    "list items": (100_000, lambda n: "<ul>" + "<li>x" * n),
    "nested lists": (3_000, lambda n: "<ul><li>" * n + "x"),
    "nested quotes": (3_000, lambda n: "<blockquote>" * n + "x"),
    "nested divs": (3_000, lambda n: "<div>" * n + "x"),
    "nested tables": (3_000, lambda n: "<table><tr><td>" * n + "x"),
    "open bold": (20_000, lambda n: "<p>" + "<b>x" * n),
}
