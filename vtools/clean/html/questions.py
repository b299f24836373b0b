"""Questions beside HTML answers: the site that sanitised the answers escaped them, although they were no HTML."""

import re

_RAW = re.compile("[<>]|&(?!(?:lt|gt|amp|quot|#39|#x27);)")
_ESCAPED = re.compile("&(lt|gt|amp|quot|#39|#x27);")
_CHARACTERS = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "#39": "'", "#x27": "'"}


def unescaped(texts: list[str]) -> list[str]:
    """The questions of a record as they were asked; the same texts if one holds a character that the site escapes."""
    if not any(["&" in text for text in texts]) or any(map(_RAW.search, texts)):
        return texts
    return [_ESCAPED.sub(lambda match: _CHARACTERS[match[1]], text) for text in texts]
