"""Records in the shapes that every tool reads: OpenAI's, ShareGPT's, Alpaca's and others.

    {"messages": [{"role", "content"}]}                      OpenAI, UltraChat-200k
    {"conversations" or "items": [{"from", "value"}]}        ShareGPT, OpenHermes
    {"conversation": [{"role", "content"}]}                  lmsys-chat-1m
    {"data": [TEXT, TEXT, ...]}                              UltraChat
    {"instruction", "input", "output"}                       Alpaca
    {"prompt", "completion"} and other names of the two      questions with answers
    {"prompt", "chosen", "rejected"}                         preferences

`records/conversation.py` reads them, for all tools; --columns names the columns of any other.
"""

from vtools.fetch import turns
from vtools.records import conversation
from vtools.records.jsonl import Record
from vtools.records.naming import Names

NAME = "records"
SHAPES = ("messages", "sharegpt", "alpaca", "prompt-completion", "preference", "columns")  # as `source.kind` says
_TIMES = ("created_at", "create_time", "created", "timestamp", "date")


def read(value: Record, names: Names) -> Record:
    """The record; its `source` says its shape, title and time, unless it has one already. Raises Reject."""
    record = conversation.read(value, names)
    known = record.get("source")
    if isinstance(known, dict):
        return record
    record["source"] = {"kind": "columns" if names.columns else conversation.shape(value)}
    if isinstance(title := value.get("title"), str) and title:
        record["source"]["title"] = title
    times = [] if value.keys().isdisjoint(_TIMES) else [turns.when(value.get(key)) for key in _TIMES]
    if created := next(filter(None, times), None):
        record["source"]["created_at"] = created
    if known is not None:
        record["source"]["name"] = known
    return record
