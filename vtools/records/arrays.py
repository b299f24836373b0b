"""Cutting a JSON array into the bytes of its elements, without parsing them and in linear time."""

import re
from collections.abc import Generator, Iterator

from vtools.records.unpacking import Torn, prepend

BETWEEN = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")  # what may precede an array, and separate two
# All repeats are possessive, so that an unterminated string costs one pass, not one per character.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# The same, ten times faster; it does not match strings with a quote after two or more backslashes.
_SIMPLE = rb'"[^"]*+"(?:(?<=[^\\]\\")[^"]*+")*+(?<!\\")'
_FLAT = rb'[^"\[\]{}]++|' + _SIMPLE
_NESTED = rb"[\[{](?:" + _FLAT + rb"|[\[{](?:" + _FLAT + rb")*+[\]}])*+[\]}]"
# The next comma or bracket of the array itself; the next bracket inside an element; past elements nested two deep.
# A quote instead means a string that is not simple or has not ended yet.
_TOP = re.compile(rb'(?:[^"\[\]{},]++|' + _SIMPLE + rb"|" + _NESTED + rb')*+([\[\]{},"])')
_DEEP = re.compile(rb"(?:" + _FLAT + rb"|" + _NESTED + rb')*+([\[\]{}"])')


def elements(chunks: Iterator[bytes]) -> Generator[tuple[bytes, str | None], None, Iterator[bytes] | None]:
    """Cut an array (or several, one after another) at its top-level commas, without parsing the elements.

    Yields each element with None, or the last one with an error if the array is cut off. Returns what follows it.
    """
    buffer, position, start, depth, dropped = b"", 0, 0, 0, 0
    torn = "the array is not closed"
    wanted = 1  # bytes to read before the next attempt: grows during a long string, so that time stays linear
    while True:
        pieces, got = [], 0
        try:
            while got < wanted:
                piece = next(chunks)
                pieces.append(piece)
                got += len(piece)
        except StopIteration:
            pass
        except Torn as error:
            torn = str(error)
        if not pieces:
            break
        keep = min(start, position) if depth else position
        buffer, dropped = buffer[keep:] + b"".join(pieces), dropped + keep
        start, position, wanted = start - keep, position - keep, 1
        while True:
            if depth == 0:
                position = BETWEEN.match(buffer, position).end()  # type: ignore[union-attr]
                if position == len(buffer):
                    break
                if buffer[position : position + 1] != b"[":
                    return prepend(buffer[position:], chunks)
                start, depth = position + 1, 1
                position = start
            token = (_TOP if depth == 1 else _DEEP).match(buffer, position)
            if token is None:
                position = len(buffer)
                break
            kind, position = token[1], token.end()
            if kind == b'"':
                string = _STRING.match(buffer, position - 1)
                if string is None:
                    position -= 1
                    break
                position = string.end()
            elif depth == 1 and kind in b"],":
                raw = buffer[start : position - 1].strip()
                start = position
                if raw:
                    yield raw, None
            if kind in b"[{":
                depth += 1
            elif kind in b"]}":
                depth -= 1
        if depth:  # neither rescanning a long string nor copying a long element may become quadratic
            wanted = max(1, len(buffer) - position, (len(buffer) - start) // 2)
    if depth > 0:
        rest, place = buffer[start:].strip(), f"{torn}: it breaks off at byte {dropped + len(buffer)}"
        if depth == 1 and position == len(buffer) and rest.endswith((b"}", b"]", b'"')):  # only the bracket is missing
            yield rest, None
            rest = b""
        yield rest, place
    return None
