"""Words and phrases that no text may contain: blocked ones, and those of a refusal."""

import re
import unicodedata
from pathlib import Path

from vtools.process import Failure
from vtools.records import words
from vtools.records.conversation import Message

_SPACELESS = re.compile(f"[{words.NO_SPACES}\u1100-\u11ff\uac00-\ud7af]")  # Korean joins endings to any word


class Phrases:
    """Phrases to look for: whole words, whatever their case."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        folded = (_folded(" ".join(phrase.split())) for phrase in phrases)
        self.phrases = tuple(dict.fromkeys(filter(None, folded)))

    def find(self, text: str) -> str | None:
        """The first phrase of the list that occurs in the text."""
        text = _folded(text)
        for phrase in self.phrases:
            if phrase in text and _whole(phrase, text):  # `in` is ten times as fast as an alternation
                return phrase
        return None

    def found(self, messages: list[Message], role: str | None = None) -> str | None:
        """Where a phrase occurs, as `messages[N]: PHRASE`; in the messages of `role` only, if given."""
        for place, message in enumerate(messages):
            if (role is None or message["role"] == role) and (phrase := self.find(message["content"])):
                return f"messages[{place}]: {phrase}"
        return None


def read(file: str) -> tuple[str, ...]:
    """The phrases of a file, one per line. Raises Failure if there are none."""
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Failure(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    phrases = tuple(line.strip() for line in lines if line.strip())
    if not phrases:
        raise Failure(f"{file}: no word or phrase in it; write one per line")
    return phrases


def _folded(text: str) -> str:
    return words.plain(text.lower()).replace("\u2019", "'")


def _whole(phrase: str, text: str) -> bool:
    """Whether the phrase occurs in the text as whole words; in scripts without spaces, as whole characters."""
    place = text.find(phrase)
    while place >= 0:
        before, after = text[place - 1 : place], text[place + len(phrase) : place + len(phrase) + 1]
        begins = not (before and _in_word(before) and _in_word(phrase[0]))
        ends = not (after and (_is_mark(after) or (_in_word(after) and _in_word(phrase[-1]))))
        if begins and ends:
            return True
        place = text.find(phrase, place + 1)
    return False


def _in_word(character: str) -> bool:
    """Whether a character is part of a word, in a script that puts spaces between words."""
    return (character == "_" or character.isalnum() or _is_mark(character)) and not _SPACELESS.match(character)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"
