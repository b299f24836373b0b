"""Words and phrases that are looked for in texts: blocked ones, and what a refusal says."""

from __future__ import annotations

import re
from pathlib import Path

from vtools.process import Failure
from vtools.records.conversation import Message

# What only a model says of itself or to turn a request down; each holds the assistant's own voice, so that an
# apology, a talk about models or a story's dialogue is no refusal.
REFUSALS = (
    "as an ai language model, i",
    "as an ai model, i",
    "as an ai assistant, i",
    "as an ai, i do not",
    "as an ai, i don't",
    "as an ai, i cannot",
    "as an ai, i can't",
    "as an ai, i am not able",
    "as an ai, i'm not able",
    "as a large language model, i",
    "as a language model, i",
    "i am an ai language model and",
    "i'm an ai language model and",
    "i cannot fulfill your request",
    "i cannot fulfill this request",
    "i can't fulfill that request",
    "i cannot comply with your request",
    "i cannot comply with this request",
    "i am unable to fulfill",
    "i'm unable to fulfill",
    "i cannot assist with that",
    "i can't assist with that",
    "i cannot assist you with that",
    "i can't assist you with that",
    "i'm sorry, but i cannot",
    "i'm sorry, but i can't",
    "i'm sorry, but i am not able to",
    "i'm sorry, but i'm not able to",
    "i'm sorry, but i am unable to",
    "i'm sorry, but i'm unable to",
    "i am sorry, but i cannot",
    "i apologize, but i cannot",
    "i apologize, but i can't",
    "i apologize, but i am unable to",
    "i'm sorry, i cannot",
    "i'm sorry, i can't",
    "it is not appropriate for me to",
    "it is against my programming",
    "it goes against my programming",
    "violates openai's",
    "against openai's content policy",
    "against openai's use case policy",
)
# What joins a word: letters and digits of scripts that put spaces between words.
_IN_WORD = (
    r"[^\W\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)


class Phrases:
    """Phrases to look for: whole words, whatever their case."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        self.phrases = tuple(dict.fromkeys(_folded(" ".join(phrase.split())) for phrase in phrases))

    def find(self, text: str) -> str | None:
        """The first phrase of the list that the text holds."""
        text = _folded(text)
        for phrase in self.phrases:
            if phrase in text and _whole(phrase, text):  # `in` is ten times as fast as an alternation
                return phrase
        return None

    def found(self, messages: list[Message], role: str | None = None) -> str | None:
        """Where a phrase stands, in the messages of a role or in all."""
        for place, message in enumerate(messages):
            if (role is None or message["role"] == role) and (phrase := self.find(message["content"])):
                return f"messages[{place}]: {phrase}"
        return None


def read(file: str) -> tuple[str, ...]:
    """The phrases of a file, one a line. Raises Failure if there are none."""
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Failure(f"{file}: not UTF-8 at byte {error.start}") from None
    phrases = tuple(line.strip() for line in lines if line.strip())
    if not phrases:
        raise Failure(f"{file}: holds no word or phrase; one a line is wanted")
    return phrases


def _folded(text: str) -> str:
    text = text.lower()
    return text if text.isascii() else text.replace("\u2019", "'")


def _whole(phrase: str, text: str) -> bool:
    """Whether the phrase stands in the text as whole words."""
    start = f"(?<!{_IN_WORD})" if re.match(_IN_WORD, phrase[0]) else ""
    end = f"(?!{_IN_WORD})" if re.match(_IN_WORD, phrase[-1]) else ""
    return re.search(start + re.escape(phrase) + end, text) is not None
