"""`vtools fetch`: read files and URLs as records."""

import itertools
from typing import Annotated, Literal

import typer

from vtools import options, provenance
from vtools.records import filtering, jsonl, naming
from vtools.records.jsonl import Record


def fetch(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|FOLDER|URL|hf:OWNER/NAME...]",
            help="Files, folders, globs, http(s) URLs or data sets of the hub; - is stdin (default).",
        ),
    ] = None,
    role: options.Roles = None,
    columns: options.Columns = None,
    branches: Annotated[
        Literal["current", "all"],
        typer.Option(help="Which branches to read of a conversation that was edited: the one its page shows, or all."),
    ] = "current",
    license: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]NAME", help="Set the license of records that come without a source; repeatable by kind."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Keep conversations from this date on: 2026-01-31, in UTC.")
    ] = None,
    limit: Annotated[int | None, options.number(min=0, help="Stop after N records.")] = None,
    sample: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Read a random share, such as 0.01; see --seed."),
    ] = None,
    seed: options.Seed = 0,
    list_sources: Annotated[bool, typer.Option("--list-sources", help="Show what can be read, and stop.")] = False,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Read conversations in all usual formats, from files or URLs, and write them in one format.

    Reads the exports of ChatGPT, Claude, Open WebUI and LM Studio, the logs of llm, saved pages of ChatGPT and
    ShareGPT, the usual data sets, and any JSONL, JSON (an array, objects over several lines, one list of turns per
    line) or parquet, plain or packed (gzip, bzip2, xz, zstd, zip); --list-sources shows them all. The content tells
    what a file is, not its name. --columns names the columns of any other table, and reads CSV and TSV by their
    header; --role names other roles. Of a folder, all data files in it and below are read, sorted by name, and so are
    those of hf:OWNER/NAME[/PATH][@REVISION], a data set of Hugging Face's hub.

    Output is JSONL with OpenAI's `messages`; the `source` of a record holds its kind, its file or URL, the time of the
    download, the license, and the conversation's title and times. Tools that served an answer, its thoughts and its
    attachments are named beside it. An interrupted download is resumed. Unreadable input ends the run with exit status
    1, unless --rejects FILE collects it; so does input of which no record can be read.

    \b
    Examples:
      vtools fetch sharegpt.json.gz --rejects rejects.jsonl > raw.jsonl
      vtools fetch https://example.org/chats.jsonl --license cc-by-4.0 -o raw.jsonl
      vtools fetch chatgpt-export.zip --since 2026-01-01 > raw.jsonl
      vtools fetch data/ 'more/*.zip' --role helper=assistant > raw.jsonl
      vtools fetch faq.csv --columns user=question,assistant=answer > raw.jsonl
      echo '{"prompt": "Hi", "completion": "Hello!"}' | vtools fetch
    """
    from vtools.fetch import selection, source, sources
    from vtools.records import expand

    if list_sources:
        return print(sources.table(), end="")
    names, files = naming.parse(role, columns), given or ["-"]
    licenses, earliest = selection.licenses(license, sources.NAMES), selection.date(since)
    origin = source.Origin()

    def work(value: Record) -> list[Record]:
        found = sources.read(value, names, branches)
        for record in found:
            if record["source"] is not value.get("source"):
                record["source"] = origin.describe(record["source"], licenses)
        return [provenance.stamp(record, "fetch") for record in selection.since(found, earliest)]

    with jsonl.output(out) as output:
        files = expand.expanded("fetch", files, names, (out, rejects), quiet, sources.KINDS)
        counts = filtering.Rejects("fetch", rejects, files)
        values = selection.sampled(source.values(files, origin, names), sample, seed, counts)
        values = itertools.islice(values, limit)
        filtering.run(counts, values, work, options.Common(out, rejects, stats, quiet=quiet), write=output.write)
