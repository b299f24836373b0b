"""The default filters: one function per reject reason."""

import re

from vtools.clean.turns import joined, shape
from vtools.records import markdown
from vtools.records.jsonl import Record

SHORTEST = 16  # characters in all texts together, FastChat's limit
_LONGEST_NOTICE = 500  # characters, with a request's id and several notices in one answer
_CONTACT = r" please contact us through our help center at help\.openai\.com\b"
_RETRY = r"You can retry your request, or contact us through our help center at help\.openai\.com if"
# What ChatGPT's page showed in place of an answer, from 2022 on; the service behind it had words of its own.
_NOTICES = (
    r"Too many requests in 1 hour\. Try again later",
    r"Too many requests, please slow down",
    r"Only one message at a time\. Please allow any other responses to complete before sending another message,"
    r" or wait one minute",
    rf"(?:Something went wrong|An error occurred)\. If this issue persists,?{_CONTACT}",
    r"An error occurred\. Either the engine you requested does not exist or there was another issue processing your"
    rf" request\. If this issue persists,?{_CONTACT}",
    r"(?:Hmm\W+)?something seems to have gone wrong(?:\. Maybe try me again in a little bit)?",
    rf"Something went wrong while generating the response(?:\. If this issue persists,?{_CONTACT})?",
    r"There was an error generating a response",
    r"(?:The|That) (?:server|model)(?: (?:had an error(?: while)?|experienced an error while) processing your request"
    r"| is(?: currently)? overloaded with other requests)(?:\. Sorry about that)?"
    rf"(?:\W+{_RETRY} (?:you keep seeing this error|the error persists))?"
    r"(?:\W+Please include the request ID [\w-]+ in your (?:message|email))?",
    r"You(?:'ve| have) reached (?:our|your|the(?: current)?) (?:limits?|usage (?:cap|limit))(?: of messages)?"
    r"(?: (?:per|for) [\w .-]{1,40})?"
    r"(?:\W+(?:You can continue with the default model now, or |Please )?try again (?:later|after [^\n.]{1,40}))?"
    r"(?:\W+Learn more)?",
    r"You(?:'ve| have) sent too many messages(?: to the model)?\. Please try again later",
    r"Error in (?:body|message|input) stream",
    r"This (?:content|prompt|response) may violate our (?:content policy|usage policies|terms of use or usage policies)"
    r"(?:\. If you believe this to be in error, please submit your feedback\W+your input will aid our research in this"
    r" area|\. Did we get it wrong\W+Please tell us by giving this response a thumbs down)?",
    r"Our systems are a bit busy at the moment, please take a break and try again soon",
    r"We(?:'re| are) experiencing exceptionally high demand\. Please hang tight as we work on scaling our systems",
    r"Our systems have detected unusual activity (?:coming )?from your system\. Please try again later",
    r"Unusual activity has been detected from your device\. Try again later",
    r"Your (?:authentication token|session) has expired\. Please (?:log|sign) in again(?: to continue using the app)?",
    r"The message you submitted was too long, please reload the conversation and submit something shorter",
    r"(?:ChatGPT is|We're) at capacity right now",
    r"Network error",
)
_NOTICE = re.compile(rf"\W*(?:(?:{'|'.join(_NOTICES)})\W*)+", re.IGNORECASE)
_DIGITS = 20  # in a row: more than in a GUID of zeros, in the wei of an ether or in a third as a decimal
_RUN = re.compile(rf"([0-9])\1{{{_DIGITS - 1}}}")
_INLINE_CODE = re.compile(r"(`{1,2})[^`\n]+\1")
# An item numbered 1, and the lines up to the next 1 if none of them is numbered or a heading.
_TWICE_ONE = re.compile(r"\n1\. .*(?P<between>(?:\n(?!\d+[.)][ \t]|#{1,6} ).*)*)(?=\n1\. )")
_CODE = "```"
_BELONGS_ABOVE = (_CODE, "- ", "* ", "+ ", "|", ">")  # starts of lines that can be no heading of a second list


def plugin(record: Record) -> str | None:
    """The conversation used plug-ins, whose results its texts do not contain."""
    return "the plugins key is set" if record.get("plugins") else None


def too_short(record: Record) -> str | None:
    """The conversation has too few characters to learn from."""
    if len(joined(record["messages"])) >= 4 * SHORTEST + len(record["messages"]):  # at most 4 bytes each
        return None
    count = sum([len(message["content"]) for message in record["messages"]])
    return f"{count} characters in all" if count < SHORTEST else None


def blocked_response(record: Record) -> str | None:
    """An answer is only notices of the site: a limit, a failure, a policy."""
    for place, message in enumerate(record["messages"]):
        text = message["content"]
        short = len(text) < _LONGEST_NOTICE and message["role"] == "assistant"
        if short and _NOTICE.fullmatch(text.replace("\u2019", "'")):
            return f"messages[{place}]: {text.strip()}"
    return None


def rep_digits(record: Record) -> str | None:
    """One digit occurs twenty times in a row outside code."""
    # No twenty digits in a row at all: they would be four in a row of every fifth byte, which is quicker to see.
    if b"0000" not in shape(record["messages"], _DIGITS // 4) or b"0" * _DIGITS not in shape(record["messages"]):
        return None
    for place, message in enumerate(record["messages"]):
        if found := _RUN.search(_INLINE_CODE.sub("", _without_blocks(message["content"]))):
            return f"messages[{place}]: {found[0]}"
    return None


def wrong_list(record: Record) -> str | None:
    """A list of an answer restarts at 1 after its first item, as broken conversions write them."""
    if b"\n1. " not in joined(record["messages"]):
        return None
    for place, message in enumerate(record["messages"]):
        text = message["content"]
        if message["role"] == "assistant" and text.count("\n1. ") + text.startswith("1. ") > 1:
            for found in _TWICE_ONE.finditer("\n" + _without_blocks(text)):
                if not _ends_before_a_list(found["between"].split("\n")[1:]):
                    return f"messages[{place}]: a list restarts at 1"
    return None


def _ends_before_a_list(lines: list[str]) -> bool:
    """Whether the lines between two items numbered 1 end in what introduces a list; else both are of one list.

    That is a line directly above the second item, or a paragraph of its own that ends in a colon or is a title.
    """
    filled = [place for place, line in enumerate(lines) if line.strip()]
    last = lines[filled[-1]] if filled else ""
    if not last or last[0] in " \t" or last.startswith(_BELONGS_ABOVE):
        return False
    if filled[-1] == len(lines) - 1:
        return True
    return filled[-1] > len(filled) - 1 and last.rstrip().endswith((":", "\uff1a", "**", "__"))


def _without_blocks(text: str) -> str:
    """The text with a line that only opens a fence, indented as it was, in place of each fenced code block."""
    kept, position = [], 0
    for begin, after in markdown.fences(text):
        kept += [text[position:begin], " " if text[begin] in " \t" else "", _CODE, "\n"]
        position = after
    return "".join(kept) + text[position:] if kept else text
