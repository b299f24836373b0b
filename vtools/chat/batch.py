"""Questions in, answers out: the filter side of `vtools chat`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from vtools.inference import journal
from vtools.inference.client import Client, Sampling, usage
from vtools.inference.connect import Target, connect
from vtools.inference.journal import Task
from vtools.options import Common
from vtools.process import Failure, say
from vtools.records import jsonl, streams
from vtools.records.jsonl import Record
from vtools.records.question import Question, read_question


def answer_all(
    files: list[str],
    target: Target,
    system: str | None,
    sampling: Sampling,
    common: Common,
    *,
    text: bool = False,
    dry_run: bool = False,
) -> None:
    """Ask every question of the files and write the answers. Raises Failure if some got no answer."""
    questions = _lines(files) if text else journal.tasks(files, read_question)
    if dry_run:
        _tell(questions, target)
        return
    client, name = connect(target)
    keys = journal.Keys()

    def tasks() -> Iterator[Task]:
        for task in questions:
            if task.question:
                asked = dataclasses.asdict(task.question)
                task.key = keys.unique(journal.key("chat", name, system, asked, sampling.options()))
            yield task

    def ask(task: Task) -> Record:
        return answer(client, name, task.question, system, sampling, task.key)

    def write_text(output: jsonl.Output, record: Record) -> None:
        output.stream.write("".join(f"{turn}\n" for turn in record["turns"]).encode())
        if output.flush:
            output.stream.flush()

    complaint = journal.run("chat", tasks(), ask, common, write=write_text if text else jsonl.Output.write)
    client.close()
    if complaint:
        raise Failure(complaint)


def answer(client: Client, model: str, question: Question, system: str | None, sampling: Sampling, key: str) -> Record:
    """Ask a question turn by turn and return the answer record."""
    messages = opening(question.context, system)
    answers = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        answers.append(client.complete(messages, sampling))
        messages.append({"role": "assistant", "content": answers[-1].text})
    record: Record = {"id": question.id, "model": model, **question.fields()}
    record["turns"] = [reply.text for reply in answers]
    record["finish"] = [reply.finish for reply in answers]
    return {**record, **usage(answers), "ms": sum(reply.ms for reply in answers), "key": key}


def opening(context: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    """A copy of the conversation so far, with the system message added if it has none."""
    if system and not any(message["role"] == "system" for message in context):
        return [{"role": "system", "content": system}, *context]
    return list(context)


def _lines(files: list[str]) -> Iterator[Task]:
    """Every non-blank line as a question."""
    for file in files or ["-"]:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as stream:
            for number, line in enumerate(iter(stream.readline, b""), 1):
                if asked := line.decode(errors="replace").strip():
                    value = streams.Value(line, "stdin" if file == "-" else file, number)
                    yield Task(value, {"prompt": asked}, read_question({"prompt": asked}))


def _tell(tasks: Iterator[Task], target: Target) -> None:
    questions = turns = unreadable = 0
    for task in tasks:
        questions += task.question is not None
        turns += len(task.question.turns) if task.question else 0
        unreadable += task.reject is not None
    say(
        "chat",
        f"would ask {target.model or 'the model'} at {target} {questions} questions ({turns} turns); "
        f"{unreadable} records have no question",
    )
