"""Sets of calls of functions: glaive-function-calling-v2 and xlam-function-calling.

    {"system": "SYSTEM: ...", "chat": "USER: ... ASSISTANT: ... <|endoftext|> FUNCTION RESPONSE: ..."}
    {"query", "answers": "[{name, arguments}]", "tools": "[...]"}

Records hold no calls of functions yet: those conversations are refused by name (`tool`), those without one are read.
Sets that have calls in turns of their own, with `tool_calls` or the roles `function_call` and `tool`, are `records`.
"""

import re

from vtools.fetch import turns
from vtools.records.jsonl import Record, Reject

NAME = "function-calls"
KEYS = ("chat", "answers")
_SPEAKER = re.compile(r"(?:^|(?<=\s))(USER|ASSISTANT|FUNCTION RESPONSE):\s*")


def sniff(value: Record) -> bool:
    chat = value.get("chat")
    return ("query" in value and "tools" in value) or (isinstance(chat, str) and chat.lstrip().startswith("USER:"))


def read(value: Record, branches: str) -> list[Record]:
    chat, system = value.get("chat"), value.get("system")
    if not isinstance(chat, str):
        raise Reject("tool", "answers are calls of functions")
    _, *pieces = _SPEAKER.split(chat)
    if "<functioncall>" in chat or "FUNCTION RESPONSE" in pieces[::2]:
        raise Reject("tool", "chat has a call of a function")
    system = system.strip().removeprefix("SYSTEM:").strip() if isinstance(system, str) else ""
    messages = [turns.message("system", system)] if system else []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        messages.append(
            turns.message("user" if speaker == "USER" else "assistant", text.replace("<|endoftext|>", "").strip())
        )
    return [turns.record(value.get("id"), messages)]
