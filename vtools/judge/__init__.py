"""`vtools judge`: let a model compare the answers of two others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vtools import options

if TYPE_CHECKING:
    from vtools.inference.journal import Task

Price = Annotated[float | None, typer.Option(min=0.0, metavar="USD", help="Price per million tokens, for --dry-run.")]


def judge(
    a: Annotated[str, typer.Argument(metavar="A", help="Answers of one model, the one to compare with; - is stdin.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Answers of the other; - is stdin.")],
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="The questions, where the answers do not carry them.")
    ] = None,
    training_data: Annotated[
        list[str] | None,
        typer.Option("--training-data", metavar="FILE", help="Say which questions this file holds; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="JUDGE",
            envvar="VTOOLS_MODEL",
            help="The judge: a name that the server knows, or a folder, .gguf file or hub id to load here.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="An OpenAI-compatible server. [env var: OPENAI_BASE_URL]"),
    ] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Show A's answer first, always; judges favour a place, so not advised.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of the judge.")] = 2048,
    seed: options.Seed = 0,
    template: options.TemplateName = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Longest silence of the server.")] = 600.0,
    usd_in: Price = None,
    usd_out: Price = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 4,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare the answers of two models, question by question: one judgment a line, for `vtools report`.

    Each pair of answers is judged twice, once in each order, for helpfulness, relevance, accuracy and detail, from 1 to
    10 (programs and mathematics by their own measure, against the reference where the question has one). The judge
    never sees the models' names. Identical answers are a tie without a call. A reply without scores is asked for once
    more; then its verdict is null, and the exit code 1. Answers to a question that the other file lacks are left out
    and counted.

    Answers are those of `vtools chat`, FastChat's or the Vicuna blog's, joined by their question's id.

    Questions that a model was trained on tell little: --training-data names those whose words stand in the data that
    it was trained on (13 in a row; `vtools clean --decontaminate` takes such conversations out), at first and at last.

    With -o FILE, what is judged is kept in FILE.journal, and the same command again, after a failure or a kill, asks
    only for the rest. On plain stdout nothing is kept and all is asked again.

    \b
    Examples:
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 -n --usd-in 2 --usd-out 8
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 -j 8 -o judgments.jsonl
      vtools judge a.jsonl b.jsonl --questions q.jsonl --base-url http://127.0.0.1:8000/v1 | vtools report
    """
    from vtools.judge import judging, matches

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": 1.0, "seed": seed}
    tasks = matches.matches(a, b, questions, ("ab",) if one_order else ("ab", "ba"))
    seen = None
    if training_data:
        held = list(tasks)
        seen, tasks = _seen_in_training(held, a, training_data), iter(held)
    if dry_run:
        judging.estimate(tasks, model, base_url, sampling, out, usd_in, usd_out)
        return
    try:
        judging.judge_all(
            tasks, model, base_url, template, sampling, timeout, options.Common(out, rejects, stats, jobs, quiet)
        )
    finally:
        if seen and not quiet:
            print(seen, file=sys.stderr)


def _seen_in_training(tasks: Sequence[Task], name: str, files: Sequence[str]) -> str:
    """Say on stderr which questions the training data holds; returns the line that sums it up. Raises Failure."""
    from vtools.process import Failure
    from vtools.records import conversation, jsonl, overlap
    from vtools.records.jsonl import Reject

    asked = {task.question.question.id: task.question.question for task in tasks if task.question}
    index = overlap.Index((name, question) for question in asked.values())
    seen: dict[str, str] = {}
    read = 0
    for value in jsonl.values(files):
        try:
            record = jsonl.parse(value)[0]
            messages = [] if isinstance(record, Reject) else conversation.read(record)["messages"]
        except Reject:  # no conversation, so nothing was learned from it
            continue
        read += bool(messages)
        for hit in index.hits(message["content"] for message in messages):
            seen.setdefault(hit.id, f"question {hit.id} is in {value.file}:{value.number}: {hit.words}")
    if not read:
        raise Failure(f"--training-data {', '.join(files)}: holds no conversation")
    for identity in asked:
        if identity in seen:
            print(f"vtools judge: {seen[identity]}", file=sys.stderr)
    found = ", ".join(identity for identity in asked if identity in seen)
    return f"vtools judge: {len(seen)} of {len(asked)} questions are in the training data{': ' if seen else ''}{found}"
