"""Questions in, answers out: the filter side of `vtools chat`."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vtools.inference import journal
from vtools.inference.client import Answer, Client, Sampling, paid, usage
from vtools.inference.connect import Target, connect
from vtools.inference.forecast import Forecast, parts
from vtools.inference.journal import Kind, Task
from vtools.inference.run import ask_all
from vtools.options import Common
from vtools.process import Failure, UsageFailure, say, shown
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
        _forecast(questions, target, system, sampling, common, text)
        return
    if text and common.out and journal.is_kept(common.out) and os.path.exists(common.out):
        raise UsageFailure(
            f"{common.out} exists, and its bare lines do not say which answers they are; choose another -o"
        )
    client, name = connect(target)

    def ask(task: Task) -> Record:
        return answer(client, name, task, system, sampling)

    def write_text(output: jsonl.Output, record: Record) -> None:
        lines = "".join(f"{turn}\n" for turn in record["turns"])
        output.stream.write((shown(lines) if output.stream.isatty() else lines).encode("utf-8", "replace"))
        if output.flush:
            output.stream.flush()

    complaint = ask_all(
        "chat",
        _keyed(questions, name, client.identity(), system, sampling),
        ask,
        common,
        Kind("model", same={"model": name}),
        total=_total(files, text),
        write=write_text if text else jsonl.Output.write,
        clients=[client],
    )
    client.close()
    if complaint:
        raise Failure(complaint)


def answer(client: Client, model: str, task: Task, system: str | None, sampling: Sampling) -> Record:
    """Ask a question turn by turn, from the first that an earlier run has not asked, and return the answer record."""
    question: Question = task.question
    messages = opening(question.context, system)
    answers = _answers(task.begun)
    for place, turn in enumerate(question.turns):
        messages.append({"role": "user", "content": turn})
        if place == len(answers):
            answers.append(client.complete(messages, sampling))
            if place + 1 < len(question.turns):
                so_far = {"answers": [asdict(reply) for reply in answers], **usage(answers)}
                named = {"model": model, "model_reported": answers[-1].model}
                task.keep({"key": task.key, "unfinished": True, **named, **so_far})
        messages.append({"role": "assistant", "content": answers[place].text})
    record: Record = {"id": question.id, "model": model, "model_reported": answers[-1].model, **question.fields()}
    record["turns"] = [reply.text for reply in answers]
    record["finish"] = [reply.finish for reply in answers]
    return {**record, **paid(answers), "key": task.key}


def _answers(begun: Record | None) -> list[Answer]:
    """The answers to the turns that an earlier run asked, of a question that it did not finish."""
    return [Answer(**row) for row in begun["answers"]] if begun else []


def _keyed(
    tasks: Iterator[Task], model: str | None, identity: str, system: str | None, sampling: Sampling
) -> Iterator[Task]:
    keys = journal.Keys()
    for task in tasks:
        if task.question:
            asked = asdict(task.question)
            task.key = keys.unique(journal.key("chat", identity, model, system, asked, sampling.options()))
        yield task


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


def _total(files: list[str], text: bool) -> int | None:
    """How many questions there are, if they are in files that can be read twice."""
    if not files or not all(map(os.path.isfile, files)):
        return None
    return sum(1 for _ in (_lines(files) if text else jsonl.values(files)))


def _forecast(
    tasks: Iterator[Task], target: Target, system: str | None, sampling: Sampling, common: Common, text: bool
) -> None:
    """Report the calls, tokens, dollars and minutes that the same command would take."""
    with journal.peek(None if text else common.out, Kind("model")) as found:
        identity = target.identity() if found else ""
        forecast = Forecast(target, sampling)
        questions = done = unreadable = 0
        for task in _keyed(tasks, target.model, identity, system, sampling):
            unreadable += task.reject is not None
            done += (known := found.get(task.key) is not None)
            if known or not task.question:
                continue
            questions += 1
            messages = opening(task.question.context, system)
            answers = _answers(found.begun(task.key))
            for before, turn in enumerate(task.question.turns):
                messages.append({"role": "user", "content": turn})
                if before >= len(answers):
                    forecast.add(messages, before - len(answers))
                else:
                    messages.append({"role": "assistant", "content": answers[before].text})
    said = [
        f"would ask {target.model or 'the model'} at {target} {questions} questions ({forecast.calls} turns)",
        *parts([forecast], common.jobs, found.times),
        f"{done} answers exist already, {unreadable} records have no question",
    ]
    say("chat", "; ".join(said))
