"""The words of a text, for comparing texts: the same for every case, Unicode form and punctuation.

A word is a run of letters and digits with their marks (vowel signs, points, accents), without characters that show
nothing (joiners, soft hyphens). In scripts without spaces between words it is one character with its marks; in those of
South East Asia, a consonant with its vowels, which is about a syllable.
"""

import functools
import re
import unicodedata

# Thai and Lao, Myanmar, Khmer, kana, Han and its extensions, and halfwidth kana.
NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
# Spacing vowels of Thai and Lao: letters to Unicode, parts of a syllable to readers.
_LEADING, _FOLLOWING = "\u0e40-\u0e44\u0ec0-\u0ec4", "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3"
_STACKING = "\u1039\u17d2"  # the next consonant is written below
_SHOWS_NOTHING = re.compile(
    "[\xad\u034f\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff\U000e0020-\U000e01ef]+"
)
_SPACED = str.maketrans({chr(code): chr(code).lower() if chr(code).isalnum() else " " for code in range(128)})
_SYMBOLS = r"+=<>/%&@$^|\\~"


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and symbols."""
    return text.translate(_SPACED).split() if text.isascii() else _word().findall(plain(text.lower()))


def with_operators(text: str) -> list[str]:
    """The words of a text, with operators and symbols as words of their own; all it shows if it has none of them.

    A hyphen, star, hash or exclamation mark counts where it stands as an operator does, not as punctuation or Markdown.
    """
    text = plain(text)
    found: list[str] = []
    for place, part in enumerate((_OPERATOR if text.isascii() else _symbol()).split(text)):
        found += [part] if place % 2 else words(part)
    return found or text.split()


def plain(text: str) -> str:
    """The text in Unicode's composed form (NFC), without characters that show nothing."""
    if text.isascii():
        return text
    text = _SHOWS_NOTHING.sub("", text)
    if unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", _many_marks().sub(r"\1", text))


@functools.cache
def _marks() -> str:
    """All combining marks, for a character class; those beyond U+FFFF with the letters of their scripts."""
    return _of_category("M") + "\U00010a00-\U00011fff\U0001e000-\U0001e95d"


@functools.cache
def _many_marks() -> re.Pattern[str]:
    """More marks than letters have (UAX 15, stream-safe text): composing takes the square of their number."""
    return re.compile(rf"([{_marks()}]{{30}})[{_marks()}]++")


@functools.cache
def _word() -> re.Pattern[str]:
    character = rf"(?![\W_])[{NO_SPACES}]"
    signs = rf"(?:[{_STACKING}]{character}|[{_FOLLOWING}{_marks()}])*+"
    letters = rf"[^\W_{NO_SPACES}]"
    return re.compile(rf"{letters}++(?:[{_marks()}]++{letters}*+)*+|[{_LEADING}]?+{character}{signs}|[{_LEADING}]")


def _operator(symbols: str) -> re.Pattern[str]:
    """A run of symbols; or `-`, `*`, `!`, `#` before `=`, between spaces, or beside what they act on."""
    return re.compile(
        rf"([-*!#{symbols}](?:(?<=[{symbols}])[{symbols}]*+|(?<=[-*!])=++|(?<=-)>"
        r"|(?<=\S [-*])(?= )|(?<=[\w)\]]\*)\*?(?=[\w(\[])|(?<=-)(?<!\w-)(?=\d)|(?<=\d-)(?=\d)"
        r"|(?<=!)(?<!\w!)(?=[\w(])|(?<=\w#)|(?<=#)(?=\w)))"
    )


_OPERATOR = _operator(_SYMBOLS)


@functools.cache
def _symbol() -> re.Pattern[str]:
    symbols = _of_category("S").replace("\xb4", "")  # as in don´t
    return _operator(_SYMBOLS + symbols + "\U0001d000-\U0001d3ff\U0001f000-\U0001fbff")


def _of_category(category: str) -> str:
    every = map(chr, range(0x80, 0x10000))
    return "".join([one for one in every if unicodedata.category(one)[0] == category])
