"""System messages by statements before a chat template: a default text, and writing them into the first question.

Such a statement works for any template, and is stored with the weights for every program that renders
chat_template.jinja.
"""

import json
import re

# It gives a conversation without a system message one. Jinja reads these string escapes as JSON writes them. The line
# end after a statement belongs to it (trim_blocks).
_HEAD = (
    "{%- if not messages or messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': TEXT}] + messages %}{% endif %}\n"
)
_SET = re.compile(re.escape(_HEAD).replace("TEXT", r'"(?:[^"\\]|\\.)*"'))
# An empty system message goes.
_FOLD = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{% set text = messages[0]['content'] | trim %}"
    "{% set text = text + '\\n\\n' + messages[1]['content'] if text else messages[1]['content'] %}"
    "{% set messages = [{'role': 'user', 'content': text}] + messages[2:] %}{% endif %}\n"
)


def replaced(source: str, text: str) -> str:
    """A template's source with this default system text, in place of one that was set before; of "" an empty one."""
    return _HEAD.replace("TEXT", json.dumps(text, ensure_ascii=False)) + original(source)


def original(source: str) -> str:
    """The source without a default system text that was set by `replaced`."""
    return _SET.sub("", source, count=1) if _SET.match(source) else source


def folded(source: str) -> str:
    """The source of a template that writes a system message, and an empty line, before the first question."""
    return _FOLD + source


def found(without: str, before: str, after: str) -> str | None:
    """The default text in a rendering `without` a system message, given what stands before and after the text of one.

    None if the template has no place for it there.
    """
    if len(without) < len(before) + len(after) or not (without.startswith(before) and without.endswith(after)):
        return None
    return without[len(before) : len(without) - len(after)]
