"""OpenAI's files for fine-tuning on preferences.

    {"input": {"messages": [...]}, "preferred_output": [{"role", "content"}], "non_preferred_output": [...]}

Its files of conversations, {"messages": [..., {"role": "assistant", "content", "weight": 0 or 1}]}, are `records`.
"""

from vtools.fetch import turns
from vtools.records import conversation
from vtools.records.jsonl import Record

NAME = "openai-preferences"
KEYS = ("preferred_output",)


def sniff(value: Record) -> bool:
    return isinstance(turns.inside(value, "input", "messages"), list)


def read(value: Record, branches: str) -> list[Record]:
    record = conversation.read({
        "prompt": value["input"]["messages"], "chosen": value["preferred_output"],
        "rejected": value.get("non_preferred_output"),
    })  # fmt: skip
    return [{**record, "source": {}}]
