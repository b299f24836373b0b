"""vtools clean: HTML to Markdown, turns in order, and nothing broken, empty or twice."""

import dataclasses
import enum
import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from vtools import options, process
from vtools.clean import duplicates, steps
from vtools.clean.choices import Choices
from vtools.clean.draft import Draft
from vtools.process import UsageFailure, say
from vtools.records import conversation, filtering, jsonl, streams
from vtools.records.jsonl import Record, Reject


class Filter(enum.StrEnum):
    """What --keep switches off; a filter's name is the reason that it gives."""

    html = "html"
    plugin = "plugin"
    blocked_response = "blocked_response"
    rep_digits = "rep_digits"
    wrong_list = "wrong_list"
    too_short = "too_short"
    dup_exact = "dup_exact"


def clean_record(value: Record, **chosen: Any) -> Record:
    """The cleaned record of any shape, duplicates aside, with the fields of `Choices` as chosen. Raises Reject."""
    return steps.draft(Choices(**chosen), value).record


class Counts(filtering.Rejects):
    """The counts of a run, with what was found in the texts."""

    def __init__(self, rejects: str | None, files: list[str]) -> None:
        super().__init__("clean", rejects, files)
        self.redacted: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()

    def add(self, reject: Reject, value: streams.Value, record: Any = None) -> None:
        super().add(reject, value, record)
        if reject.reason == "lang":
            self.languages[reject.detail] += 1

    def summary(self) -> dict[str, Any]:
        found = {"redacted": self.redacted, "languages": self.languages}
        return super().summary() | {name: dict(counts.most_common()) for name, counts in found.items() if counts}


def clean(
    files: options.Files = None,
    format: options.Format = "messages",
    engine: Annotated[
        Literal["auto", "fast", "reference"],
        typer.Option(help="HTML converter: fast is turbohtml (auto: if installed), reference is markdownify."),
    ] = "auto",
    merge_same_role: Annotated[
        bool, typer.Option("--merge-same-role", help="Join two messages of one role in a row instead of dropping all.")
    ] = False,
    preset: Annotated[
        Literal["vicuna"] | None,
        typer.Option(help="FastChat's rules in the place of all that is on by default, to compare with."),
    ] = None,
    keep: Annotated[
        list[Filter] | None, typer.Option(help="Switch off the step of this name; may be repeated.")
    ] = None,
    blocked_words: Annotated[
        str | None, typer.Option(metavar="FILE", help="Drop what says one of these, whole words, any case.")
    ] = None,
    drop_refusals: Annotated[
        bool, typer.Option("--drop-refusals", help="Drop what holds an answer that only turns the request down.")
    ] = False,
    refusals: Annotated[
        str | None, typer.Option(metavar="FILE", help="Drop what holds an answer with one of these phrases.")
    ] = None,
    keep_lang: Annotated[
        str | None, typer.Option(metavar="CODES", help="Keep only these languages: en,de (un: not told).")
    ] = None,
    skip_lang: Annotated[str | None, typer.Option(metavar="CODES", help="Drop these languages: zh,ko.")] = None,
    pii: Annotated[
        Literal["redact", "drop", "tag"] | None,
        typer.Option(help="Mail addresses, API keys, card and phone numbers, public IP addresses."),
    ] = None,
    special_tokens: Annotated[
        Literal["keep", "drop", "break"],
        typer.Option(help="Texts with </s>, <|im_end|>, [INST] and such; break puts a space in."),
    ] = "keep",
    dedupe: Annotated[
        Literal["first", "longest"],
        typer.Option(help="Of equal ones the first; longest: nor one that another goes on from (no stream)."),
    ] = "first",
    near_duplicates: Annotated[
        float | None,
        typer.Option(min=0.1, max=1.0, metavar="SHARE", help="Drop what is as similar as 0.8 to an earlier one."),
    ] = None,
    decontaminate: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Drop what holds a question of this file; may be repeated.")
    ] = None,
    decontaminate_ngram: Annotated[
        int, typer.Option(min=3, metavar="N", help="So many words in a row are a match.")
    ] = 13,
    moderation: Annotated[
        str | None, typer.Option(metavar="URL", help="Drop what this OpenAI-compatible server flags.")
    ] = None,
    moderation_model: Annotated[
        str, typer.Option(metavar="NAME", help="The model that it is asked for.")
    ] = "omni-moderation-latest",
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="Write only what each step does to the records with this id.")
    ] = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Clean conversations: HTML answers become Markdown, turns come in order, broken ones are dropped.

    Only an answer that begins with an HTML block is converted; questions and Markdown are kept byte for byte
    (control characters aside). Cleaning twice changes nothing. A conversation starts with its first question and ends
    with its last answer, or before the first empty message. Dropped, with the reason given in --rejects FILE:
    role_order, empty, html_parse, and these, which --keep switches off: too_short (under 16 characters), dup_exact
    (the first stays), plugin, blocked_response (a rate-limit notice as answer), rep_digits, wrong_list. --keep html
    leaves HTML as it is.

    Off unless asked for: blocked_word, refusal, lang, pii, special_token, dup_near, contaminated, moderation. They look
    at texts as they are written, code included (but not for the language). --keep-lang and --skip-lang write the
    language to `lang`; `un` is too little text or too mixed. The key for --moderation is OPENAI_API_KEY, -j asks
    for as many at a time, and the scores are kept in `moderation`.

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
    hashable = {"keep": frozenset(map(str, keep or ())), "decontaminate": tuple(decontaminate or ())}
    choices: Choices = options.fields_from(Choices, locals() | hashable)
    if engine == "fast" and importlib.util.find_spec("turbohtml") is None:
        raise process.missing_extra("turbohtml", "fast", "--engine fast")
    inputs = list(files or ())
    if preset and (keep or merge_same_role or dedupe == "longest"):
        raise UsageFailure(f"--preset {preset} is a fixed set of rules: no --keep, --merge-same-role, --dedupe longest")
    if dedupe == "longest" and ("dup_exact" in choices.keep or moderation):
        raise UsageFailure("--dedupe longest goes neither with --keep dup_exact nor, asking twice, with --moderation")
    if explain is not None and (rejects or stats):
        raise UsageFailure("--explain writes no records: no --rejects, no --stats")
    steps.pure(choices)  # a wrong file fails before any input is read, and the workers share what is made here
    sources = longer = None
    if dedupe == "longest":
        from vtools.clean.read_twice import Sources

        sources, longer = Sources(inputs), duplicates.Longer()
        _note_starts(choices, sources.values(), longer, common)
    ordered = steps.ordered(choices, longer, explain=explain is not None)
    with jsonl.output(out) as output:
        values = sources.values() if sources else jsonl.values(inputs)
        if explain is not None:
            from vtools.clean.explain import tell

            tell(explain, choices, values, ordered, output)
            return
        counts = Counts(rejects, inputs)
        work: Any = functools.partial(steps.draft, choices)  # gives drafts, which `finish` turns into records

        def finish(made: Draft) -> Record | Reject:
            try:
                for step in ordered:
                    step.take(made)
            except Reject as reject:
                return reject
            counts.redacted.update(made.redacted or ())
            if made.language:
                counts.languages[made.language] += 1
            return made.record

        def write(record: Record) -> None:
            output.write(conversation.formatted(record, format))

        filtering.run(counts, values, work, common, write=write, finish=finish)


def _note_starts(
    choices: Choices, values: Iterator[streams.Value], longer: duplicates.Longer, common: options.Common
) -> None:
    """The first of two passes: what every conversation begins with. What is rejected is told in the second."""
    if not common.quiet:
        say("clean", "--dedupe longest does not stream: it reads all before it writes")

    def note(made: Draft) -> Record:
        longer.note(made.starts, made.record["id"])
        return made.record

    work: Any = functools.partial(steps.draft, dataclasses.replace(choices, near_duplicates=None))
    common = options.Common(jobs=common.jobs, quiet=True)
    counts = filtering.Rejects("clean", os.devnull)
    filtering.run(counts, values, work, common, write=lambda record: None, finish=note)
