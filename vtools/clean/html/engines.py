"""The engines that convert a small HTML document to Markdown; each is imported only when needed."""

import contextlib
import functools
import importlib.util
import re
from collections.abc import Callable
from typing import Any

from vtools.clean.html import fast_path, page, pieces, placeholders
from vtools.records.jsonl import Reject

Engine = Callable[[str], str]
_BESIDE_BLOCKS = re.compile(" ?(</?(?:p|div|[uo]l|li|h[1-6r]|blockquote|t(?:able|[rdh]))(?: [^<>]*)?>) ?")

# Blocks that engines set no apart from the rest of a list item; and the tags that tell where items are.
_SPACED = "<(?:table|hr|blockquote|h[1-6])(?: [^<>]*)?>"
_PLACES = re.compile(f"(?P<item></?li>)|(?P<begin>{_SPACED})|</(?:table|blockquote|h[1-6])>")
_BEGINS = re.compile("<(?:li|(?:div|blockquote)(?: [^<>]*)?)> ?")


def convert(texts: list[str], engine: str) -> list[str]:
    """The Markdown of HTML messages. Raises Reject("html_parse") if no engine can convert one of them."""
    try:
        if sum(map(len, texts)) > pieces.LONG:
            apart = (filter(None, (_converted([piece], engine)[0] for piece in pieces.cut(text))) for text in texts)
            return list(map("\n\n".join, apart))
        return _converted(texts, engine)
    except Exception as error:  # one message must not end the run
        raise Reject("html_parse", f"{type(error).__name__}: {error}"[:500]) from None


def _converted(texts: list[str], engine: str) -> list[str]:
    documents = [_with_space(fast_path.document(text) or page.document(text)) for text in texts]
    engines = chosen(engine)
    laid_out = _together(documents, engines[0]) or [_alone(document, engines) for document in documents]
    return [placeholders.restored(text, document.kept) for text, document in zip(laid_out, documents, strict=True)]


def _with_space(document: placeholders.Document) -> placeholders.Document:
    """With empty lines around tables, rules, quotes and headings of list items, where engines write none."""
    source = document.html
    if not document.crowded:
        return document
    out, done, depth = [], 0, 0
    for place in _PLACES.finditer(source):
        if place["item"]:
            depth += 1 if place[0] == "<li>" else -1
        elif depth:
            if place["begin"] and not _BEGINS.match(source, source.rfind("<", 0, place.start())):
                out += [source[done : place.start()].rstrip(" "), placeholders.SEPARATOR]
                done = place.start()
            if not place["begin"] or place[0].startswith("<hr"):
                out += [source[done : place.end()], 2 * placeholders.SEPARATOR]
                done = place.end()
    return placeholders.Document("".join([*out, source[done:]]), document.kept)


def _together(documents: list[placeholders.Document], engine: Engine) -> list[str] | None:
    """All documents converted as one, which saves the engine's start-up for each; None if that fails."""
    between = f"<p>{placeholders.END}</p>"
    try:
        parts = engine(between.join([document.html for document in documents])).split(placeholders.END)
    except Exception:
        return None
    return parts if len(parts) == len(documents) else None


def _alone(document: placeholders.Document, engines: tuple[Engine, ...]) -> str:
    for engine in engines[:-1]:
        with contextlib.suppress(Exception):
            return engine(document.html)
    return engines[-1](document.html)


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
    """markdownify, on a document without the white space around blocks, which it would keep."""
    from vtools.clean.html.markdownify_engine import Converter

    return Converter().convert(_BESIDE_BLOCKS.sub(r"\1", document))


@functools.cache
def _turbohtml() -> Engine:
    from turbohtml import Markdown, parse_fragment

    class Style(Markdown):
        """Our style, which the library would otherwise take apart again for each document: a quarter of its time."""

        def _unpack(self) -> dict[str, object]:  # a version that does not call it is slower, not wrong
            return unpacked

    chosen: Any = {
        "escaping": Markdown.Escaping(mode="none", asterisks=False, underscores=False),
        "tables": Markdown.Tables(cell_blocks="text"),
    }
    unpacked = Markdown(**chosen)._unpack() if hasattr(Markdown, "_unpack") else {}
    style = Style(**chosen)
    return lambda document: parse_fragment(document).to_markdown(style)
