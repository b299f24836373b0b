"""Chat templates in the manner of well-known model families, written for the tests: what each does with texts is theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

GENERATION = "{%- if add_generation_prompt %}PROMPT{%- endif %}"


class Family(NamedTuple):
    """A family's template, its added tokens (text: flags), and its end, bos token and end of sequence."""

    template: str
    tokens: dict[str, dict[str, bool]]
    end: str
    settings: dict[str, object]


def _special(*names: str) -> dict[str, dict[str, bool]]:
    return {name: {"special": True} for name in names}


_TURNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_HEADER = "{{- '<|start_header_id|>' + ROLE + '<|end_header_id|>\\n\\n' }}"
# Llama 3's turns, and the start of an answer.
_TURNS_OF_LLAMA = (
    "{%- for message in messages %}"
    + _HEADER.replace("ROLE", "message['role']")
    + "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    + GENERATION.replace("PROMPT", _HEADER.replace("ROLE", "'assistant'"))
)

FAMILIES = {
    "llama-3": Family(
        "{{- bos_token }}" + _TURNS_OF_LLAMA,
        _special("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "llama-3.1": Family(
        "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}{%- set about = messages[0]['content'] | trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set about = '' %}{%- endif %}"
        + _HEADER.replace("ROLE", "'system'")
        + "{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}"
        "{{- about }}{{- '<|eot_id|>' }}" + _TURNS_OF_LLAMA,
        _special("<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "qwen-2.5": Family(
        "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
        "{%- else %}{{- '<|im_start|>system\\nYou are a test model.<|im_end|>\\n' }}{%- endif %}"
        "{%- for message in messages %}{%- if not (loop.first and message.role == 'system') %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        + GENERATION.replace("PROMPT", "{{- '<|im_start|>assistant\\n' }}"),
        _special(*_TURNS),
        "<|im_end|>",
        {"eos_token": "<|im_end|>"},
    ),
    "qwen-3": Family(
        "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
        "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' and not "
        "(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}{%- if message.role == 'user' %}"
        "{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}{%- elif message.role == 'assistant' %}"
        "{%- set thought = '' %}{%- if '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
        "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        + GENERATION.replace("PROMPT", "{{- '<|im_start|>assistant\\n' }}"),
        _special(*_TURNS) | {"<think>": {}, "</think>": {}, "<tool_response>": {}, "</tool_response>": {}},
        "<|im_end|>",
        {"eos_token": "<|im_end|>"},
    ),
    "mistral-3": Family(
        "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
        "{{- '[INST] ' + message.content + '[/INST]' }}{%- elif message.role == 'assistant' %}"
        "{{- ' ' + message.content | trim + eos_token }}{%- else %}"
        "{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}",
        _special("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "gemma-2": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        _special("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>") | {"\n": {}},
        "<end_of_turn>",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
    "smollm-3": Family(
        "{%- set asked = messages[0].content if messages[0].role == 'system' else '' %}"
        "{%- set thinks = '/no_think' not in asked %}{%- set asked = asked.replace('/no_think', '').replace('/think', '').rstrip() %}"
        "{{- '<|im_start|>system\\n## Metadata\\n\\nReasoning Mode: ' + ('/think' if thinks else '/no_think') + '\\n\\n' + asked + '<|im_end|>\\n' }}"
        "{%- for message in messages %}{%- if message.role == 'user' %}"
        "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{%- elif message.role == 'assistant' %}"
        "{%- if thinks %}{{- '<|im_start|>assistant\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}{%- else %}"
        "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}"
        "{%- endif %}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if not thinks %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}{%- endif %}",
        _special(*_TURNS) | {"<think>": {}, "</think>": {}},
        "<|im_end|>",
        {"eos_token": "<|im_end|>"},
    ),
    "phi-3": Family(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        {name: {"special": True, "rstrip": True} for name in ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")}
        | _special("<|endoftext|>"),
        "<|end|>",
        {"eos_token": "<|endoftext|>"},
    ),
    "chatml": Family(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        _special(*_TURNS),
        "<|im_end|>",
        {"eos_token": "<|im_end|>"},
    ),
    "vicuna": Family(
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}{{ 'A chat. ' }}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        _special("</s>"),
        "</s>",
        {"eos_token": "</s>"},
    ),
    "zephyr": Family(
        "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        _special("</s>"),
        "</s>",
        {"eos_token": "</s>"},
    ),
    "deepseek-r1": Family(
        "{%- set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
        "{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{- bos_token + ns.system }}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' %}{%- set content = message['content'] %}"
        "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
        "{{- '<|Assistant|>' + content + '<|end_of_sentence|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}",
        _special("<|begin_of_sentence|>", "<|end_of_sentence|>") | {"<|User|>": {}, "<|Assistant|>": {}, "<think>": {}, "</think>": {}},
        "<|end_of_sentence|>",
        {"bos_token": "<|begin_of_sentence|>", "eos_token": "<|end_of_sentence|>"},
    ),
}  # fmt: skip


def made(base: str | Path, folder: Path, template: str, tokens: dict[str, dict[str, bool]], **settings: object) -> Path:
    """A tokenizer's folder: that of `base` with more added tokens (text: flags), another template, other settings."""
    import tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(Path(base) / "tokenizer.json"))
    for text, flags in tokens.items():
        backend.add_tokens([tokenizers.AddedToken(text, **{"special": False, "normalized": False, **flags})])
    backend.save(str(folder / "tokenizer.json"))
    had = json.loads((Path(base) / "tokenizer_config.json").read_text())
    had = {key: value for key, value in had.items() if key not in ("bos_token", "eos_token", "chat_template")}
    (folder / "tokenizer_config.json").write_text(json.dumps(had | {"chat_template": template} | settings))
    return folder
