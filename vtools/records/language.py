"""Which language a text is written in, its code aside (pycld2, the detector that FastChat uses through polyglot)."""

from __future__ import annotations

import re

from vtools import process

UNKNOWN = "un"
# A fence takes its whole line; it is closed by one of its kind that is at least as long (CommonMark 0.31, 4.5).
_FENCE = re.compile(r"^ {0,3}(?:>[> ]*)?(`{3,}(?=[^`\n]*$)|~{3,})(.*)$", re.MULTILINE)
# CLD2 refuses texts that hold one of these: controls and noncharacters.
_REFUSED = re.compile(
    "[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_OLD_CODES = {"iw": "he", "jw": "jv", "zh-Hant": "zh", "sr-ME": "sr", "xxx": UNKNOWN}


def detect(text: str) -> str:
    """The ISO 639 code of a text's language; "un" if there is too little text or too much of a mixture to tell.

    Fenced code and control characters do not count. Raises Failure if pycld2 is not installed.
    """
    try:
        import pycld2
    except ModuleNotFoundError:
        raise process.missing_extra("pycld2", "filters", "telling languages apart") from None
    text = without_code(text)
    try:
        reliable, _, found = pycld2.detect(text, isPlainText=True, bestEffort=True)
    except (pycld2.error, UnicodeEncodeError):
        reliable, _, found = pycld2.detect(_REFUSED.sub("", text), isPlainText=True, bestEffort=True)
    code: str = found[0][1]
    code = _OLD_CODES.get(code, code)
    return code if reliable and not code.startswith("xx-") else UNKNOWN


def without_code(text: str) -> str:
    """The text without its fenced code blocks; one that is never closed ends with the text."""
    if "```" not in text and "~~~" not in text:
        return text
    kept, position, fence = [], 0, ""
    for found in _FENCE.finditer(text):
        if not fence:
            kept.append(text[position : found.start()])
            fence = found[1]
        elif found[1].startswith(fence) and not found[2].strip():
            position, fence = found.end(), ""
    if not fence:
        kept.append(text[position:])
    return "".join(kept)
