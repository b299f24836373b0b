"""`vtools split`: long conversations to segments that fit the model's window."""

import contextlib
import functools
import os
from typing import Annotated, Any, Literal

import typer

from vtools import options
from vtools.process import UsageFailure
from vtools.records import conversation, filtering, jsonl


def split(
    files: options.Files = None,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a segment, template and all.")] = 2048,
    tokenizer: Annotated[
        str | None, typer.Option(envvar="VTOOLS_MODEL", metavar="MODEL", help="Whose tokens: a model reference.")
    ] = None,
    template: options.TemplateName = None,
    system: options.SystemText = None,
    overlong: Annotated[
        Literal["keep", "drop", "truncate", "split-answer"],
        typer.Option(help="What becomes of a single pair of turns that cannot fit."),
    ] = "keep",
    overlap_turns: Annotated[
        int, typer.Option(min=0, metavar="N", help="Begin each further segment with the last N turn pairs before it.")
    ] = 0,
    preset: Annotated[
        Literal["vicuna"] | None, typer.Option(help="vicuna: FastChat's cuts, counts and losses.")
    ] = None,
    hold_out: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Share of conversations held out: 1% or 0.01.")
    ] = None,
    hold_out_file: Annotated[str | None, typer.Option(metavar="FILE", help="Where the held-out segments go.")] = None,
    format: options.Format = "messages",
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut conversations between turn pairs into segments of at most --max-tokens.

    Tokens are counted as `train` will see them: with the model's own template, to the token. No turn is lost: a turn
    pair (a question and its answer) goes whole into one segment, and every pair into one. A pair that is too long by
    itself is counted as overlong and, by --overlong:

    \b
      keep          left as it is (`train` cuts it)
      drop          put with the rejects
      truncate      its answer is cut at the end of a word
      split-answer  its answer is cut into several segments, each with the question: between paragraphs, else lines,
                    else words, and not inside a code block unless the block is longer than a segment

    A question that is too long by itself is dropped by the last three. With --hold-out a share of the conversations,
    chosen by their id, goes to another file; segments of one conversation never fall on both sides.

    A segment's id is ID_START, START counting messages, and its `segment` says of which conversation it is, which
    one of how many, and its tokens. With --overlap-turns, `overlap` in it is the number of messages that were in the
    segment before (only as many as fit): context, which `train` does not train a second time.

    --preset vicuna cuts as FastChat 0.2.36 does and writes what it writes; the turns that it loses are counted as
    turns_lost and go to --rejects.

    \b
    Examples:
      vtools clean raw.jsonl | vtools split --max-tokens 2048 --tokenizer ./llama > train.jsonl
      vtools split clean.jsonl --tokenizer ./llama --hold-out 1% --hold-out-file eval.jsonl -o train.jsonl
      vtools split clean.jsonl --tokenizer ./llama --overlong split-answer --stats split.json > train.jsonl
    """
    common = options.fields_from(options.Common, locals())
    from vtools.split import segments, vicuna
    from vtools.split.counts import Tally

    if tokenizer is None:
        raise UsageFailure("whose tokens? give --tokenizer MODEL (a folder, a hub id or a .gguf file)")
    if hold_out_file is not None and hold_out_file == out:
        raise UsageFailure("--out and --hold-out-file are the same file")
    if (hold_out is None) != (hold_out_file is None):
        raise UsageFailure("--hold-out and --hold-out-file belong together")
    if preset and (template or system is not None or overlong != "keep" or overlap_turns):
        theirs = "--template, --system, --overlong and --overlap-turns"
        raise UsageFailure(f"--preset {preset} has its own way: leave out {theirs}")
    share = _share(hold_out) if hold_out else 0.0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # -j says how many processors it may use
    # The first call fails for a wrong reference before any input is read, and loads what -j's processes share.
    work: Any
    if preset:
        vicuna.counter(tokenizer)
        work = functools.partial(vicuna.split, tokenizer=tokenizer, max_tokens=max_tokens)
    else:
        segments.rendering(tokenizer, template, system)
        work = functools.partial(
            segments.split,
            tokenizer=tokenizer,
            template=template,
            system=system,
            max_tokens=max_tokens,
            overlong=overlong,
            overlap_turns=overlap_turns,
            exact=stats is not None,
        )
    with contextlib.ExitStack() as stack:
        training = stack.enter_context(jsonl.output(out))
        held = stack.enter_context(jsonl.output(hold_out_file)) if hold_out_file else training
        size, gone = (vicuna.size, "turns_lost") if preset else (segments.size, "turns_dropped")
        counts = Tally(rejects, files or [], size, gone)

        def write(record: Any) -> None:
            if not counts.take(record):
                return
            side = held if segments.held_out(record.base, share) else training
            counts.extra["held_out"] += side is not training
            side.write(record if preset else conversation.formatted(record, format))

        filtering.run(counts, jsonl.values(files or []), work, common, write=write)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageFailure(f"--hold-out {text}: a share such as 1% or 0.01")
    return share
