"""`vtools stats`: summarise a file of records or of training metrics as numbers, a table or a chart."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from vtools import options
from vtools.files import atomic, crawl_state
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import Tokenizer, load_tokenizer
from vtools.process import Failure, UsageFailure, say
from vtools.records import conversation, filtering, jsonl, naming, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.naming import Names
from vtools.stats import compare, counting, metrics


def stats(
    files: options.Files = None,
    role: options.Roles = None,
    columns: options.Columns = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Count tokens too, with this model's tokenizer.")
    ] = None,
    template: options.TemplateName = None,
    system: options.SystemText = None,
    fold_system: options.FoldSystem = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Compare two files, BEFORE and AFTER, of records or of --stats counts.")
    ] = False,
    plot: options.Plot = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Count what is in a file of records, summarise a training run or a crawl, or compare two files.

    Reads conversations, files of rejected records, the metrics of `vtools train`, or the state of `vtools fetch`,
    and detects which. Writes one JSON object, and on a terminal also a table to stderr. --tokenizer counts the
    tokens of whole conversations in the model's prompt template, as `split` and `train` do; of the texts alone if
    the model has none. Languages are counted only if pycld2 is installed. Duplicates are records whose texts, or
    whose ids, occurred before. Broken input ends the count with exit status 1 after the counts so far are written,
    unless --rejects is given.

    \b
    Examples:
      vtools stats train.jsonl
      vtools stats train.jsonl --tokenizer ./llama --plot lengths.svg
      vtools stats --diff raw.jsonl clean.jsonl
      vtools stats metrics.jsonl --plot loss.svg
      vtools stats crawl.db
    """
    names, theirs = files or [], naming.parse(role, columns)
    if any(map(crawl_state.is_state, names)):
        if len(names) > 1 or any(
            (role, columns, tokenizer, template, system is not None, fold_system, diff, plot, rejects)
        ):
            raise UsageFailure("the state of a crawl is shown alone: vtools stats STATE")
        summary = crawl_state.summary(names[0])
        with jsonl.output(out) as output:
            output.write(summary)
        if sys.stderr.isatty() and not quiet:
            from vtools.stats import table

            table.show(summary)
        return
    if diff and (len(names) != 2 or plot):
        raise UsageFailure("--diff compares two files and draws no chart: vtools stats --diff BEFORE AFTER")
    if (template or system is not None or fold_system) and not tokenizer:
        raise UsageFailure("--template, --system and --fold-system count tokens: they need --tokenizer MODEL")
    if plot:
        from vtools import plots

        plots.check(plot)
    counting_with = _counting_with(tokenizer, template, system, fold_system, quiet) if tokenizer else None
    counts = filtering.Rejects("stats", rejects, names)
    inputs = [_Input(given, counts, theirs, quiet) for given in ([[name] for name in names] if diff else [names])]
    found = [_sum_up(each, counting_with, counted_already=diff) for each in inputs]
    summary, picture = found[0]
    if diff:
        summary = compare.changes(*(counted for counted, _ in found))
    with jsonl.output(out) as output:
        output.write(summary)
        for each in inputs:
            if each.failure:
                raise each.failure
        counts.check_readable()
    if sys.stderr.isatty() and not quiet:
        from vtools.stats import table

        table.show(summary)
    if plot:
        atomic.write(plot, picture(plot))


class _Input:
    """The objects of some files. An early end is kept in `failure` until the counts are written."""

    def __init__(self, files: list[str], counts: filtering.Rejects, names: Names, quiet: bool) -> None:
        self.files, self.counts, self.names, self.quiet = files, counts, names, quiet
        self.failure: Failure | None = None

    def __iter__(self) -> Iterator[tuple[streams.Value, Record]]:
        try:
            with jsonl.progress("stats", self.quiet) as tick:
                for value in jsonl.values(self.files, self.names):
                    self.counts.received += 1
                    record = jsonl.parse(value)[0]
                    if isinstance(record, Reject):
                        self.counts.add(record, value)
                    else:
                        yield value, record
                    tick()
        except Failure as failure:
            self.failure = failure


def _counting_with(
    model: str, template: str | None, system: str | None, fold_system: bool, quiet: bool
) -> Tokenizer | Template:
    tokenizer = load_tokenizer(model)
    try:
        return load_template(template, tokenizer, system, fold_system)
    except Failure as failure:
        if template or system is not None or fold_system or tokenizer.chat_template:
            raise
        if not quiet:
            say("stats", f"{failure}; this counts the texts alone")
        return tokenizer


Summary = tuple[dict[str, Any], Callable[[str], bytes]]  # and the function that draws it


def _sum_up(source: _Input, counting_with: Tokenizer | Template | None, counted_already: bool) -> Summary:
    counted = counting.Counted(source.counts, counting_with, source.names)
    objects = iter(source)
    first = list(itertools.islice(objects, 2))
    lines = itertools.chain(first, objects)
    if first and "step" in first[0][1] and "messages" not in first[0][1]:
        steps = [step for _, step in lines]
        return metrics.sum_up(steps), functools.partial(metrics.picture, steps)
    if counted_already and len(first) == 1 and not _is_conversation(first[0][1], source.names):
        return first[0][1], functools.partial(counting.picture, first[0][1])
    for value, record in lines:
        counted.add(value, record)
    summary = counted.summary()
    return summary, functools.partial(counting.picture, summary)


def _is_conversation(value: Record, names: Names) -> bool:
    try:
        return bool(conversation.read(value, names))
    except Reject:
        return False
