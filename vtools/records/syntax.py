"""What is wrong with a text that should be JSON, in the words of the person who has to mend it."""

import json
import re

from vtools.records import naming

_SAID = {
    "Expecting ',' delimiter": "a comma or a closing bracket is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting property name enclosed in double quotes": "a key in double quotes is missing",
    "Expecting value": "a value is missing",
    "Extra data": "more follows after the end of the value",
    "Unterminated string starting at": "a text begins here and is not closed",
    "Invalid control character at": "a line end or another control character inside a text",
    "Invalid \\escape": "a backslash that escapes nothing",
    "Invalid \\uXXXX escape": "\\u without four hexadecimal digits",
    "Illegal trailing comma before end of object": "a comma before the closing bracket",
    "Illegal trailing comma before end of array": "a comma before the closing bracket",
}
_PYTHON = {"None": "null", "True": "true", "False": "false"}
_REPR = re.compile(r"[\[{]\s*(?:[\[{]\s*)*'")  # objects and lists begin with a text in single quotes


def explained(text: str, error: ValueError) -> str:
    """What is wrong and where, for the error of Python's parser."""
    if not isinstance(error, json.JSONDecodeError):
        return "a number of more than 4,300 digits"
    place = error.pos
    if text[:place].strip() == "" and text.lstrip()[:1] == "<":
        return "not JSON: an HTML or XML page"
    if _REPR.match(text) or text[place : place + 1] == "'":
        return (
            f"not JSON at character {place + 1}: single quotes, as Python's str() writes them; write it with json.dumps"
        )
    for word, ours in _PYTHON.items():
        if text.startswith(word, place):
            return f"not JSON at character {place + 1}: {word}, as Python writes it; JSON has {ours}"
    if place >= len(text.rstrip()):
        return "not JSON: it breaks off before its end"
    said = next((ours for theirs, ours in _SAID.items() if error.msg.startswith(theirs)), "something else was expected")
    return f"not JSON at character {place + 1}: {said}"


def kind(raw: bytes) -> str | None:
    """What a file is whose first line is this and no JSON, if it can be told."""
    line = raw.decode("utf-8", "replace").removeprefix("\ufeff").strip()
    if re.match(r"<(?:!doctype html|html|head|body)\b", line, re.IGNORECASE):
        return "an HTML page, not JSON; was a page saved instead of the file?"
    if line.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: git lfs pull"
    for separator, name in ((",", "CSV"), ("\t", "TSV"), (";", "CSV")):
        cells = [cell.strip().strip('"') for cell in line.split(separator)]
        if len(cells) > 1 and all(re.fullmatch(r"[\w .-]{1,40}", cell) for cell in cells):
            header = ", ".join(cells[:8]) + ", ..." * (len(cells) > 8)
            return f"not JSON; it looks like {name} with the header {header}: {naming.suggested(cells)}"
    return None
