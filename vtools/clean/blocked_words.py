"""Words and phrases that no text may contain: blocked ones, and those of a refusal."""

import re
from pathlib import Path

from vtools.process import Failure
from vtools.records.conversation import Message

# Word characters: letters and digits of scripts that put spaces between words.
_IN_WORD = (
    r"[^\W\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)


class Phrases:
    """Phrases to look for: whole words, whatever their case."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        self.phrases = tuple(dict.fromkeys(_folded(" ".join(phrase.split())) for phrase in phrases))

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
    text = text.lower()
    return text if text.isascii() else text.replace("\u2019", "'")


def _whole(phrase: str, text: str) -> bool:
    """Whether the phrase occurs in the text as whole words."""
    start = f"(?<!{_IN_WORD})" if re.match(_IN_WORD, phrase[0]) else ""
    end = f"(?!{_IN_WORD})" if re.match(_IN_WORD, phrase[-1]) else ""
    return re.search(start + re.escape(phrase) + end, text) is not None
