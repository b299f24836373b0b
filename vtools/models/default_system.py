"""The system text that a chat template writes where a conversation has none: found, set or emptied.

It is set by a statement before the template, which gives such a conversation a system message. So it works for any
template, and is stored with the weights for every program that renders chat_template.jinja.
"""

import json
import re

# Jinja reads these string escapes as JSON writes them. The line end after it belongs to the statement (trim_blocks).
_HEAD = (
    "{%- if not messages or messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': TEXT}] + messages %}{% endif %}\n"
)
_SET = re.compile(re.escape(_HEAD).replace("TEXT", r'"(?:[^"\\]|\\.)*"'))


def replaced(source: str, text: str) -> str:
    """A template's source with this default system text, in place of one that was set before; of "" an empty one."""
    return _HEAD.replace("TEXT", json.dumps(text, ensure_ascii=False)) + original(source)


def original(source: str) -> str:
    """The source without a default system text that was set by `replaced`."""
    return _SET.sub("", source, count=1) if _SET.match(source) else source


def found(without: str, before: str, after: str) -> str | None:
    """The default text in a rendering `without` a system message, given what stands before and after the text of one.

    None if the template has no place for it there.
    """
    if len(without) < len(before) + len(after) or not (without.startswith(before) and without.endswith(after)):
        return None
    return without[len(before) : len(without) - len(after)]
