"""The engines that lay out a small HTML document as Markdown; neither is imported before it is needed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

Engine = Callable[[str], str]


@functools.cache
def chosen(name: str) -> tuple[Engine, ...]:
    """The engines to try, in order: `auto` and `fast` begin with turbohtml where it is installed."""
    if importlib.util.find_spec("turbohtml") is None:
        return (reference,)
    return (reference, fast) if name == "reference" else (fast, reference)


def fast(document: str) -> str:
    """turbohtml."""
    return _turbohtml()(document)


def reference(document: str) -> str:
    """markdownify."""
    from vtools.clean.reference import Converter

    return Converter().convert(document)


@functools.cache
def _turbohtml() -> Engine:
    from turbohtml import Markdown, parse_fragment

    style = Markdown(
        escaping=Markdown.Escaping(mode="none", asterisks=False, underscores=False),
        tables=Markdown.Tables(cell_blocks="text"),
    )
    return lambda document: parse_fragment(document).to_markdown(style)
