"""Which of the questions occur in a model's training data."""

from collections.abc import Sequence

from vtools.inference.journal import Task
from vtools.process import Failure, say
from vtools.records import conversation, jsonl, overlap
from vtools.records.jsonl import Reject


def seen(tasks: Sequence[Task], name: str, files: Sequence[str]) -> tuple[str, frozenset[str]]:
    """List on stderr the questions found in the training data; returns a summary line and their ids. Raises Failure."""
    asked = {task.question.question.id: task.question.question for task in tasks if task.question}
    index = overlap.Index((name, question) for question in asked.values())
    found: dict[str, str] = {}
    read = 0
    for value in jsonl.values(files):
        try:
            record = jsonl.parse(value)[0]
            messages = [] if isinstance(record, Reject) else conversation.read(record)["messages"]
        except Reject:  # not a conversation, so nothing was learned from it
            continue
        read += bool(messages)
        for hit in index.hits(message["content"] for message in messages):
            found.setdefault(hit.id, f"question {hit.id} is in {value.file}:{value.number}: {hit.words}")
    if not read:
        raise Failure(f"--training-data {', '.join(files)}: no conversations in it")
    for identity in asked:
        if identity in found:
            say("judge", found[identity])
    names = ": " * bool(found) + ", ".join(identity for identity in asked if identity in found)
    return f"{len(found)} of {len(asked)} questions are in the training data{names}", frozenset(found)
