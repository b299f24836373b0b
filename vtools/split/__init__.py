"""`vtools split`: long conversations to segments that fit the model's window."""

from __future__ import annotations

import contextlib
import functools
from typing import Annotated

import typer

from vtools import conversation, filtering, jsonl, options
from vtools.jsonl import Record
from vtools.process import UsageFailure


def split(
    files: options.Files = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=8, help="Tokens of a segment, template and all.")
    ] = 2048,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", envvar="VTOOLS_MODEL", metavar="MODEL", help="Whose tokens: a model reference."),
    ] = None,
    template: options.TemplateName = None,
    hold_out: Annotated[
        str | None, typer.Option("--hold-out", metavar="SHARE", help="Share of conversations held out: 1% or 0.01.")
    ] = None,
    hold_out_file: Annotated[
        str | None, typer.Option("--hold-out-file", metavar="FILE", help="Where the held-out segments go.")
    ] = None,
    sharegpt: Annotated[bool, typer.Option("--sharegpt", help="Write ShareGPT's shape.")] = False,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut conversations between turn pairs into segments of at most --max-tokens.

    Tokens are counted as `train` will see them: with the model's own template, to the token. No turn is lost: a
    single pair that is too long by itself is kept whole and counted as overlong (`train` cuts it). With --hold-out a
    share of the conversations, chosen by their id, goes to another file; segments of one conversation never fall on
    both sides.

    \b
    Examples:
      vtools clean raw.jsonl | vtools split --max-tokens 2048 --tokenizer ./llama > train.jsonl
      vtools split clean.jsonl --tokenizer ./llama --hold-out 1% --hold-out-file eval.jsonl -o train.jsonl
    """
    from vtools.split import segments

    if tokenizer is None:
        raise UsageFailure("whose tokens? give --tokenizer MODEL (a folder, a hub id or a .gguf file)")
    if hold_out_file is not None and hold_out_file == out:
        raise UsageFailure("--out and --hold-out-file are the same file")
    if (hold_out is None) != (hold_out_file is None):
        raise UsageFailure("--hold-out and --hold-out-file belong together")
    share = _share(hold_out) if hold_out else 0.0
    work = functools.partial(segments.split, reference=tokenizer, template=template, limit=max_tokens)
    segments.renderer(tokenizer, template)  # a wrong reference fails before any input is read
    with contextlib.ExitStack() as stack:
        training = stack.enter_context(jsonl.output(out))
        held = stack.enter_context(jsonl.output(hold_out_file)) if hold_out_file else training
        counts = filtering.Rejects("split", rejects, files or [])

        def write(record: Record) -> None:
            side = held if segments.held_out(segments.base_id(record), share) else training
            counts.extra["segments"] += 1
            counts.extra["held_out"] += side is not training
            segment = record.get("segment")
            tokens = segment.get("tokens") if isinstance(segment, dict) else None
            counts.extra["overlong"] += isinstance(tokens, int) and tokens > max_tokens
            side.write(conversation.to_sharegpt(record) if sharegpt else record)

        filtering.run("split", work, files=files or [], write=write, counts=counts, stats=stats, jobs=jobs, quiet=quiet)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageFailure(f"--hold-out {text}: a share such as 1% or 0.01")
    return share
