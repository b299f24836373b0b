"""The language of a text, ignoring code (by pycld2, the detector that FastChat uses through polyglot)."""

import re

from vtools.process import UsageFailure
from vtools.records import markdown
from vtools.records.conversation import Message

UNKNOWN = "un"
# CLD2 refuses texts that contain one of these: controls and noncharacters.
_REFUSED = re.compile(
    "[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_OLD_CODES = {"iw": "he", "jw": "jv", "zh-Hant": "zh", "sr-ME": "sr", "xxx": UNKNOWN}


def spoken(messages: list[Message]) -> str:
    """The language of what was said: of all messages except system ones, which often are the same in a whole file."""
    return detect("\n".join([message["content"] for message in messages if message["role"] != "system"]))


def detect(text: str) -> str:
    """The ISO 639 code of a text's language; "un" if the text is too short or too mixed to tell.

    Fenced code and control characters do not count.
    """
    import pycld2

    text = without_code(text)
    try:
        reliable, _, found = pycld2.detect(text, isPlainText=True, bestEffort=True)
    except (pycld2.error, UnicodeEncodeError):
        reliable, _, found = pycld2.detect(_REFUSED.sub("", text), isPlainText=True, bestEffort=True)
    code: str = found[0][1]
    code = _OLD_CODES.get(code, code)
    return code if reliable and not code.startswith("xx-") else UNKNOWN


def codes(option: str, listed: str | None) -> frozenset[str]:
    """The codes of a list such as en,de, for an option. Raises UsageFailure for one that `detect` never gives."""
    if listed is None:
        return frozenset()
    import pycld2

    wanted = frozenset(code.strip().lower() for code in listed.split(",") if code.strip())
    known = {code for _, code in pycld2.LANGUAGES if len(code) <= 3} - _OLD_CODES.keys() | {"he", "jv", UNKNOWN}
    unknown = sorted(wanted - known)
    if unknown or not wanted:
        raise UsageFailure(
            f"{option} {listed}: {', '.join(unknown) or 'nothing'} is not a language code; write codes such as en,de,zh"
        )
    return wanted


def without_code(text: str) -> str:
    """The text without its fenced code blocks; an unclosed block extends to the end."""
    kept, position = [], 0
    for begin, after in markdown.fences(text):
        kept.append(text[position:begin])
        position = after
    rest = text[position:]
    return "\n".join([*kept, rest] if rest else kept)
