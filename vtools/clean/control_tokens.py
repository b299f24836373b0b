"""Text that looks like a control token of a chat model; a careless tokenizer would end a turn there."""

import re

# LLaMA and relatives, Gemma, ChatML and every other `<|name|>`, DeepSeek's with wide bars, Llama 2 and Mistral prompts.
_LOOK_ALIKE = re.compile(
    r"</?s>|<(?:unk|pad|bos|eos|mask|start_of_turn|end_of_turn)>|<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>|\[(?:PAD|BOS|EOS)\]"
)


def found(text: str) -> str | None:
    """The first look-alike in a text."""
    match = _LOOK_ALIKE.search(text) if "<" in text or "[" in text else None
    return match and match[0]


def broken(text: str) -> str:
    """The text with a space after the first character of each look-alike.

    Tokenizers match control tokens as whole strings, so `< /s>` is plain text to all of them.
    """
    if "<" not in text and "[" not in text:
        return text
    return _LOOK_ALIKE.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
