"""The default filters: one function per reject reason."""

import re
from collections.abc import Callable

from vtools.clean.turns import joined, shape
from vtools.records.jsonl import Record

SHORTEST = 16  # characters in all texts together, FastChat's limit
# What ChatGPT's page showed in place of an answer.
_NOTICE = re.compile(
    r"\W*(?:"
    r"Too many requests in 1 hour\. Try again later\."
    r"|Too many requests, please slow down\.?"
    r"|Only one message at a time\. Please allow any other responses to complete before sending another message,"
    r" or wait one minute\."
    r"|(?:Something went wrong|An error occurred)\. If this issue persists,? please contact us through our help center"
    r" at help\.openai\.com\.?"
    r"|Our systems are a bit busy at the moment, please take a break and try again soon\.?"
    r"|Network error\.?"
    r")\s*",
    re.IGNORECASE,
)
# Two items numbered 1 with no digit 2 between them.
_ONE_TO_ONE = re.compile(rb"\n1\. [^2\xff]*\n1\. ")


def plugin(record: Record) -> str | None:
    """The conversation used plug-ins, whose results its texts do not contain."""
    return "the plugins key is set" if record.get("plugins") is not None else None


def too_short(record: Record) -> str | None:
    """The conversation has too few characters to learn from."""
    if len(joined(record["messages"])) >= 4 * SHORTEST + len(record["messages"]):  # at most 4 bytes each
        return None
    count = sum([len(message["content"]) for message in record["messages"]])
    return f"{count} characters in all" if count < SHORTEST else None


def blocked_response(record: Record) -> str | None:
    """An answer is only a notice of the site: rate limit or failure."""
    for place, message in enumerate(record["messages"]):
        text = message["content"]
        if len(text) < 200 and message["role"] == "assistant" and _NOTICE.fullmatch(text):
            return f"messages[{place}]: {text.strip()}"
    return None


def rep_digits(record: Record) -> str | None:
    """One digit occurs nine times in a row."""
    if b"0" * 9 not in shape(record["messages"]):  # no nine digits in a row at all
        return None
    for place, message in enumerate(record["messages"]):
        for digit in "0123456789":
            if digit * 9 in message["content"]:
                return f"messages[{place}]: {digit * 9}"
    return None


def wrong_list(record: Record) -> str | None:
    """An answer has a list that restarts at 1 before it reaches 2, as broken conversions write them."""
    if not _ONE_TO_ONE.search(joined(record["messages"])):
        return None
    for place, message in enumerate(record["messages"]):
        if message["role"] == "assistant" and any("2" not in gap for gap in message["content"].split("\n1. ")[1:-1]):
            return f"messages[{place}]: a list restarts at 1"
    return None


FILTERS: tuple[Callable[[Record], str | None], ...] = (too_short, blocked_response, rep_digits, wrong_list)
