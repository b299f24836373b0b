"""`vtools split`: cut long conversations into segments that fit the context window."""

import contextlib
import functools
import os
from typing import Annotated, Any, Literal

import typer

from vtools import options
from vtools.process import UsageFailure
from vtools.records import conversation, filtering, jsonl, naming, read_twice


def split(
    files: options.Files = None,
    role: options.Roles = None,
    columns: options.Columns = None,
    max_tokens: Annotated[int, options.number(min=8, help="Limit segments to N tokens, template included.")] = 2048,
    tokenizer: Annotated[
        str | None, typer.Option(envvar="VTOOLS_MODEL", metavar="MODEL", help="Use this model's tokenizer (required).")
    ] = None,
    template: options.TemplateName = None,
    system: options.SystemText = None,
    fold_system: options.FoldSystem = False,
    overlong: Annotated[
        Literal["keep", "drop", "truncate", "split-answer"],
        typer.Option(help="How to treat a turn pair that is longer than a segment."),
    ] = "keep",
    overlap_turns: Annotated[
        int, options.number(min=0, help="Begin a segment with the last N turn pairs of the one before.")
    ] = 0,
    preset: Annotated[
        Literal["vicuna"] | None, typer.Option(help="Reproduce FastChat's rules, lost turns included.")
    ] = None,
    hold_out: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Hold out this share of the conversations: 1% or 0.01.")
    ] = None,
    hold_out_file: Annotated[str | None, typer.Option(metavar="FILE", help="Write the held-out segments here.")] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Hold out records with the same value of KEY together, such as source.uri."),
    ] = None,
    format: options.Format = "messages",
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut long conversations into segments of at most --max-tokens, each beginning with a question.

    Tokens are counted exactly as `train` will see them, in the model's own prompt template. No turn is lost: each turn
    pair (a question and its answer) goes whole into one segment. A pair longer than --max-tokens is counted as
    `overlong`; --overlong says what to do with it:

    \b
      keep          leave it as is (`train` cuts it)
      drop          reject it
      truncate      cut its answer at the end of a word
      split-answer  spread its answer over several segments, each with the question; cut between paragraphs, else lines,
                    else words, and inside a code block only if the block is longer than a segment

    The last three reject a pair whose question alone is too long. --hold-out sends a share of the conversations, chosen
    by id, to --hold-out-file, after reading all input once. The segments of one conversation stay together; so do
    pieces of one that another tool has cut and numbered by turns (NAME_0, NAME_12). --group names a key to go by
    instead; --group id keeps no records together.

    A segment's id is ID_START, where START is the index of its first message. Its key `segment` holds the
    conversation's id, the segment's number, the number of segments and the token count. With --overlap-turns it also
    holds `overlap`, the number of messages repeated from the segment before (as many as fit): context, which `train`
    does not train a second time.

    --preset vicuna reproduces FastChat 0.2.36; the turns that it loses are counted as turns_lost and go to --rejects.

    \b
    Examples:
      vtools clean raw.jsonl | vtools split --max-tokens 2048 --tokenizer ./llama > train.jsonl
      vtools split clean.jsonl --tokenizer ./llama --hold-out 1% --hold-out-file eval.jsonl -o train.jsonl
      vtools split clean.jsonl --tokenizer ./llama --overlong split-answer --stats split.json > train.jsonl
    """
    common = options.fields_from(options.Common, locals())
    from vtools.split import segments, vicuna
    from vtools.split.counts import Tally
    from vtools.split.hold_out import Pieces, Sides

    names = naming.parse(role, columns)
    if tokenizer is None:
        raise UsageFailure("no tokenizer to count with: give --tokenizer MODEL (a folder, a hub id or a .gguf file)")
    if hold_out_file is not None and hold_out_file == out:
        raise UsageFailure("--out and --hold-out-file are the same file")
    if (hold_out is None) != (hold_out_file is None):
        raise UsageFailure("--hold-out and --hold-out-file go together: give both")
    if group is not None and hold_out is None:
        raise UsageFailure("--group says what --hold-out keeps together: give both")
    other = template or system is not None or fold_system or overlong != "keep" or overlap_turns or role or columns
    if preset and other:
        theirs = "--template, --system, --fold-system, --overlong, --overlap-turns, --role and --columns"
        raise UsageFailure(f"--preset {preset} is a fixed set of rules: leave out {theirs}")
    share = _share(hold_out) if hold_out else 0.0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # -j limits the processors it uses
    # This first call rejects a wrong reference before any input is read, and loads what worker processes share.
    work: Any
    if preset:
        vicuna.counter(tokenizer)
        rules = f"the rules of --preset {preset}, without a template"
        work = functools.partial(vicuna.split, tokenizer=tokenizer, max_tokens=max_tokens)
    else:
        rules = segments.rendering(tokenizer, template, system, fold_system).template.described()
        work = functools.partial(
            segments.split,
            tokenizer=tokenizer,
            template=template,
            system=system,
            fold_system=fold_system,
            max_tokens=max_tokens,
            overlong=overlong,
            overlap_turns=overlap_turns,
            exact=stats is not None,
            names=names,
        )
    with contextlib.ExitStack() as stack:
        training = stack.enter_context(jsonl.output(out))
        held = stack.enter_context(jsonl.output(hold_out_file)) if hold_out_file else training
        size, gone = (
            (vicuna.size, "turns_lost") if preset else (functools.partial(segments.size, names=names), "turns_dropped")
        )
        counts = Tally(rejects, files or [], size, gone, rules)
        values, pieces = jsonl.values(files or [], names), None
        if share and group is None:
            sources = read_twice.Sources(files or [], names)
            values, pieces = sources.values(), Pieces(sources.values(), names)
        sides = Sides(share, group, pieces)

        def write(record: Any) -> None:
            if not counts.take(record):
                return
            held_out = sides.held(record)
            counts.extra["held_out"] += held_out
            side = held if held_out else training
            side.write(record if preset else conversation.formatted(record, format))

        filtering.run(counts, values, work, common, write=write)
        if hold_out:
            sides.check(hold_out)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageFailure(f"--hold-out {text}: not a share; write 1% or 0.01")
    return share
