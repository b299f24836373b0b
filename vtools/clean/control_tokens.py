"""Text that looks like a control token of a chat model; a careless tokenizer would end a turn there.

In fenced code it is one too, except `<s>…</s>` and `<mask>…</mask>` as elements of HTML and SVG: in pairs, not quoted
as strings of a program, and without another control token in the same block, as a prompt's format would have. In inline
code they count, since people name tokens there more often than elements.
"""

import re
from bisect import bisect_left

from vtools.records import markdown

# LLaMA and relatives, Gemma, ChatML and every other `<|name|>`, DeepSeek's with wide bars, Llama 2 and Mistral prompts.
_LOOK_ALIKE = re.compile(
    r"</?s>|<(?:unk|pad|bos|eos|mask|start_of_turn|end_of_turn)>|<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>|\[(?:PAD|BOS|EOS)\]"
)
_ELEMENTS = frozenset(("<s>", "</s>", "<mask>"))


def found(text: str) -> str | None:
    """The first look-alike in a text."""
    return next((match[0] for match in _matches(text)), None)


def broken(text: str) -> str:
    """The text with a space after the first character of each look-alike.

    Tokenizers match control tokens as whole strings, so `< /s>` is plain text to all of them.
    """
    parts, position = [], 0
    for match in _matches(text):
        parts += [text[position : match.start() + 1], " "]
        position = match.start() + 1
    return "".join([*parts, text[position:]]) if parts else text


def _matches(text: str) -> list[re.Match[str]]:
    every = list(_LOOK_ALIKE.finditer(text)) if "<" in text or "[" in text else []
    if _ELEMENTS.isdisjoint(match[0] for match in every):
        return every
    places = [match.start() for match in every]
    kept, done = [], 0
    for begin, after in markdown.fences(text):
        first, end = bisect_left(places, begin), bisect_left(places, after)
        kept += every[done : first if _are_elements(every[first:end], text[begin:after]) else end]
        done = end
    return kept + every[done:]


def _are_elements(matches: list[re.Match[str]], block: str) -> bool:
    """Whether the look-alikes in a block of code are elements of HTML."""
    names = [match[0] for match in matches]
    pairs = names.count("<s>") == names.count("</s>") and names.count("<mask>") <= block.count("</mask>")
    return pairs and _ELEMENTS.issuperset(names) and not any(map(_is_quoted, matches))


def _is_quoted(match: re.Match[str]) -> bool:
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return before == after and before in ("'", '"', "`")
