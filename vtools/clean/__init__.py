"""`vtools clean`: convert HTML to Markdown, put turns in order, drop broken, empty and duplicate conversations."""

import enum
import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from vtools import options, process
from vtools.clean import duplicates, steps
from vtools.clean.choices import Choices
from vtools.clean.counts import Tally
from vtools.clean.draft import Draft
from vtools.process import UsageFailure, say
from vtools.records import conversation, filtering, jsonl, naming, streams
from vtools.records.jsonl import Record, Reject


class Filter(enum.StrEnum):
    """The steps that --keep switches off; a filter is named after its reject reason."""

    html = "html"
    plugin = "plugin"
    blocked_response = "blocked_response"
    rep_digits = "rep_digits"
    wrong_list = "wrong_list"
    too_short = "too_short"
    dup_exact = "dup_exact"


def clean_record(value: Record, **chosen: Any) -> Record:
    """Clean one record of any shape, without the duplicate checks; `chosen` are fields of `Choices`. Raises Reject."""
    return steps.draft(Choices(**chosen), value).record


def clean(
    files: options.Files = None,
    role: options.Roles = None,
    columns: options.Columns = None,
    format: options.Format = "messages",
    engine: Annotated[
        Literal["auto", "fast", "reference"],
        typer.Option(help="Which HTML converter: fast (turbohtml), reference (markdownify), auto (fast if installed)."),
    ] = "auto",
    merge_same_role: Annotated[
        bool, typer.Option("--merge-same-role", help="Join consecutive messages of one role instead of rejecting them.")
    ] = False,
    preset: Annotated[
        Literal["vicuna"] | None, typer.Option(help="Replace the default rules with FastChat's, for comparison.")
    ] = None,
    keep: Annotated[list[Filter] | None, typer.Option(help="Switch off this step; repeatable.")] = None,
    blocked_words: Annotated[
        str | None, typer.Option(metavar="FILE", help="Drop conversations with a word or phrase of this file.")
    ] = None,
    drop_refusals: Annotated[
        bool, typer.Option("--drop-refusals", help="Drop conversations with an answer that only declines the request.")
    ] = False,
    refusals: Annotated[
        str | None, typer.Option(metavar="FILE", help="Drop conversations with a phrase of this file in an answer.")
    ] = None,
    keep_lang: Annotated[
        str | None, typer.Option(metavar="CODES", help="Keep only these languages: en,de (un: unknown).")
    ] = None,
    skip_lang: Annotated[str | None, typer.Option(metavar="CODES", help="Drop these languages: zh,ko.")] = None,
    pii: Annotated[
        Literal["redact", "drop", "tag"] | None,
        typer.Option(help="How to treat email and IP addresses, keys, card, bank, phone and social security numbers."),
    ] = None,
    special_tokens: Annotated[
        Literal["keep", "drop", "break"],
        typer.Option(help="How to treat text that looks like a control token (</s>, [INST]); break inserts a space."),
    ] = "keep",
    dedupe: Annotated[
        Literal["first", "longest"],
        typer.Option(help="Which duplicate to keep: the first, or the longest version (reads the input twice)."),
    ] = "first",
    near_duplicates: Annotated[
        float | None,
        typer.Option(min=0.1, max=1.0, metavar="SHARE", help="Drop conversations this similar to another (try 0.8)."),
    ] = None,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Drop conversations with this file's questions; repeatable."),
    ] = None,
    decontaminate_ngram: Annotated[
        int, options.number(min=3, help="Count a question as found where N consecutive words agree.")
    ] = 13,
    moderation: Annotated[
        str | None, typer.Option(metavar="URL", help="Drop conversations that this OpenAI-compatible server flags.")
    ] = None,
    moderation_model: Annotated[
        str, typer.Option(metavar="NAME", help="Ask this moderation model.")
    ] = "omni-moderation-latest",
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="Show only what each step does to the records with this id.")
    ] = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Clean conversations: convert HTML answers to Markdown, put turns in order, drop broken records.

    Reads every format that `vtools fetch` reads. Only answers that are HTML of ChatGPT's page are converted. Markdown,
    and HTML that was asked for, stay byte for byte, except for control characters; so do questions, unless the site
    escaped them. A conversation is cut to begin with its first question and to end with its last answer; a question
    that is empty, or has an empty answer, goes with its answer. Turns that go are counted by reason: no_question,
    unanswered, empty, or rejected with their record; those that --merge-same-role joins stay. Cleaning twice changes
    nothing.

    Always rejected: role_order (two messages of one role in a row), empty (no question with an answer, or half a
    preference pair), html_parse (HTML that cannot be converted). Rejected unless --keep NAME: too_short (under 16
    characters), dup_exact (a repeated conversation: the same texts, tools and trained answers), plugin (it used
    plug-ins), blocked_response (a notice of the site as an answer), rep_digits (twenty equal digits in a row outside
    code), wrong_list (a list that restarts at 1, unless this tool converted it). --keep html leaves HTML as it is.

    Rejected on request: blocked_word, refusal, lang, pii, special_token, dup_near (near-duplicates), contaminated (test
    questions), moderation. These filters check the text as it will be written, code included; language detection skips
    code. A file of words or phrases has one per line; case does not matter. --keep-lang and --skip-lang store the
    language in `lang`; `un` means too short or too mixed to tell. Similarity is the share of word 5-grams in common,
    operators included. Neither considers system messages, which often are the same in a whole file.
    --pii goes by form: keys have a known prefix, are webhooks, or random letters after a word such as secret or token.
    Elements of HTML in fenced code (<s>, <mask>) are no control tokens. --moderation uses OPENAI_API_KEY, sends -j
    requests at a time and stores the scores in `moderation`.

    \b
    Examples:
      vtools clean sharegpt.json.gz --rejects rejects.jsonl > clean.jsonl
      vtools fetch dump.json | vtools clean -j 2 --stats stats.json -o clean.jsonl
      vtools clean raw.jsonl --keep wrong_list --merge-same-role --format sharegpt
      vtools clean raw.jsonl --keep-lang en --drop-refusals --pii redact --near-duplicates 0.8
      vtools clean raw.jsonl --decontaminate questions.jsonl --dedupe longest -o clean.jsonl
      vtools clean raw.jsonl --explain chat0
    """
    common = options.fields_from(options.Common, locals())
    names = naming.parse(role, columns)
    hashable = {"keep": frozenset(map(str, keep or ())), "decontaminate": tuple(decontaminate or ())}
    choices: Choices = options.fields_from(Choices, locals() | hashable)
    if engine == "fast" and importlib.util.find_spec("turbohtml") is None:
        raise process.missing_extra("turbohtml", "fast", "--engine fast")
    inputs = list(files or ())
    if preset and (keep or merge_same_role or dedupe == "longest" or role or columns):
        theirs = "--keep, --merge-same-role, --dedupe longest, --role and --columns"
        raise UsageFailure(f"--preset {preset} fixes all rules: leave out {theirs}")
    if dedupe == "longest" and ("dup_exact" in choices.keep or moderation):
        raise UsageFailure("--dedupe longest goes neither with --keep dup_exact nor with --moderation (twice the cost)")
    if explain is not None and (rejects or stats):
        raise UsageFailure("--explain writes no records: leave out --rejects and --stats")
    steps.pure(choices)  # a wrong file fails before any input is read, and worker processes share these
    sources = longer = None
    if dedupe == "longest":
        from vtools.records.read_twice import Sources

        sources, longer = Sources(inputs, names), duplicates.Longer()
        _note_starts(choices, sources.values(), longer, common)
    ordered = steps.ordered(choices, longer, explain=explain is not None)
    with jsonl.output(out) as output:
        values = sources.values() if sources else jsonl.values(inputs, names)
        if explain is not None:
            from vtools.clean.explain import tell

            tell(explain, choices, values, ordered, output)
            return
        counts = Tally(rejects, inputs)
        work: Any = functools.partial(steps.draft, choices)  # returns drafts, which `finish` turns into records

        def finish(made: Draft) -> Record | Reject:
            try:
                for step in ordered:
                    step.take(made)
            except Reject as reject:
                reject.turns = made.turns
                return reject
            counts.take(made)
            return made.record

        def write(record: Record) -> None:
            output.write(conversation.formatted(record, format))

        filtering.run(counts, values, work, common, write=write, finish=finish)


def _note_starts(
    choices: Choices, values: Iterator[streams.Value], longer: duplicates.Longer, common: options.Common
) -> None:
    """The first of two passes: note how every conversation begins. Rejects are reported in the second."""
    if not common.quiet:
        say("clean", "--dedupe longest reads all input before it writes")

    def note(made: Draft) -> Record:
        longer.note(made.starts, made.record["id"])
        return made.record

    work: Any = functools.partial(steps.draft, choices._replace(near_duplicates=None))
    common = options.Common(jobs=common.jobs, quiet=True)
    counts = filtering.Rejects("clean", os.devnull)
    filtering.run(counts, values, work, common, write=lambda record: None, finish=note, leaves=False)
