"""vtools clean: HTML to Markdown, turns in order, and nothing broken, empty or twice."""

from __future__ import annotations

import enum
import functools
import importlib.util
from collections.abc import Collection
from typing import Annotated, Literal

import typer

from vtools import conversation, filtering, jsonl, options, process
from vtools.clean import filters, html, turns
from vtools.jsonl import Record, Reject


class Filter(enum.StrEnum):
    """The filters that --keep switches off; each one's name is the reason that it gives."""

    plugin = "plugin"
    blocked_response = "blocked_response"
    rep_digits = "rep_digits"
    wrong_list = "wrong_list"
    too_short = "too_short"
    dup_exact = "dup_exact"


def clean_record(
    value: Record, *, engine: str = "auto", merge_same_role: bool = False, keep: Collection[str] = ()
) -> Record:
    """The cleaned record of any shape; raises Reject with the reason when it is dropped."""
    record = conversation.read(value)
    messages = [_readable(message, engine) for message in record["messages"]]
    messages = turns.ordered(messages, merge_same_role)
    if merge_same_role:  # two texts without HTML may look like HTML together
        messages = [_readable(message, engine) for message in messages]
    record["messages"] = turns.until_empty(messages)
    for test in filters.FILTERS:
        if test.__name__ not in keep and (detail := test(record)):
            raise Reject(test.__name__, detail)
    return jsonl.stamp(record, "clean")


def _readable(message: turns.Message, engine: str) -> turns.Message:
    text = message["content"]
    changed = html.to_markdown(text, engine) if message["role"] == "assistant" else html.CONTROLS.sub("", text)
    return message if changed is text else {**message, "content": changed}


def clean(
    files: options.Files = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 1,
    format: Annotated[
        Literal["messages", "sharegpt"], typer.Option("--format", help="Shape of the records that are written.")
    ] = "messages",
    engine: Annotated[
        Literal["auto", "fast", "reference"],
        typer.Option(
            "--engine", help="HTML converter: fast is turbohtml (auto: if installed), reference is markdownify."
        ),
    ] = "auto",
    merge_same_role: Annotated[
        bool, typer.Option("--merge-same-role", help="Join two messages of one role in a row instead of dropping all.")
    ] = False,
    keep: Annotated[
        list[Filter] | None, typer.Option("--keep", help="Switch off the filter of this name; may be repeated.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Clean conversations: HTML answers become Markdown, turns come in order, broken ones are dropped.

    Only an answer that begins with an HTML block is converted; questions and Markdown are kept byte for byte
    (control characters aside). Cleaning twice changes nothing. A conversation starts with its first question and ends
    with its last answer, or before the first empty message. Dropped, with the reason given in --rejects FILE:
    role_order, empty, html_parse, and these, which --keep switches off: too_short (under 16 characters), dup_exact
    (the first stays), plugin, blocked_response (a rate-limit notice as answer), rep_digits, wrong_list.

    \b
    Examples:
      vtools clean sharegpt.json.gz --rejects rejects.jsonl > clean.jsonl
      vtools fetch dump.json | vtools clean -j 2 --stats stats.json -o clean.jsonl
      vtools clean --keep wrong_list --merge-same-role --format sharegpt < raw.jsonl
    """
    if engine == "fast" and importlib.util.find_spec("turbohtml") is None:
        raise process.missing_extra("turbohtml", "fast", "--engine fast")
    kept = frozenset(keep or ())
    with jsonl.output(out) as output:
        filtering.run(
            "clean",
            functools.partial(clean_record, engine=engine, merge_same_role=merge_same_role, keep=kept),
            write=output.write
            if format == "messages"
            else lambda record: output.write(conversation.to_sharegpt(record)),
            files=files or (),
            finish=None if "dup_exact" in kept else filters.Duplicates(),
            rejects=rejects,
            stats=stats,
            jobs=jobs,
            quiet=quiet,
        )
