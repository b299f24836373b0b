"""What a chat template writes before the model's next answer, set to where the answers that it writes begin.

Templates of reasoning models open a thought there that they remove from answers: a model tuned on such answers would be
prompted with what it has never seen. It is set by statements around the template, so that every program that renders
chat_template.jinja prompts as was trained.
"""

import json

# Jinja reads these string escapes as JSON writes them. The line end after it belongs to the statement (trim_blocks).
_HEAD = "{%- set prompted = add_generation_prompt %}{% set add_generation_prompt = false %}\n"
_TAIL = "{% if prompted %}{{ TEXT }}{% endif %}"


def replaced(source: str, text: str) -> str:
    """A template's source that writes this text where a prompt ends, in place of its own."""
    return _HEAD + source.removesuffix("\n") + _TAIL.replace("TEXT", json.dumps(text, ensure_ascii=False))
