"""`vtools fetch`: read files and URLs as records."""

import itertools
from typing import Annotated

import typer

from vtools import options, provenance
from vtools.records import conversation, filtering, jsonl, naming
from vtools.records.jsonl import Record


def fetch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|FOLDER|URL...]", help="Files, folders, globs or http(s) URLs; - is stdin (default)."
        ),
    ] = None,
    role: options.Roles = None,
    columns: options.Columns = None,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Set the license of records that come without a source.")
    ] = None,
    limit: Annotated[int | None, options.number(min=0, help="Stop after N records.")] = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Read conversations in all usual formats, from files or URLs, and write them in one format.

    Input is JSONL, JSON (an array, objects over several lines, one list of turns per line) or parquet, plain or packed
    (gzip, bzip2, xz, zstd, zip), detected by its first bytes. A conversation has OpenAI `messages`, ShareGPT
    `conversations` or `items`, Alpaca `instruction`/`output`, or `prompt`/`completion`. --columns names the columns of
    any other table, and reads CSV and TSV by their header; --role names other roles. Of a folder, all data files in it
    and below are read, sorted by name.

    Output is JSONL with OpenAI's `messages`; the `source` of a record holds its format, its file or URL, the time of
    the download and the license. An interrupted download is resumed. Unreadable input ends the run with exit status 1,
    unless --rejects FILE collects it; so does input of which no record can be read.

    \b
    Examples:
      vtools fetch sharegpt.json.gz --rejects rejects.jsonl > raw.jsonl
      vtools fetch https://example.org/chats.jsonl --license cc-by-4.0 -o raw.jsonl
      vtools fetch data/ 'more/*.zip' --role helper=assistant > raw.jsonl
      vtools fetch faq.csv --columns user=question,assistant=answer > raw.jsonl
      echo '{"prompt": "Hi", "completion": "Hello!"}' | vtools fetch
    """
    from vtools.fetch import source
    from vtools.records import expand

    names, files = naming.parse(role, columns), sources or ["-"]
    origin = source.Origin()

    def work(value: Record) -> Record:
        record = conversation.read(value, names)
        known = record.get("source")
        if not isinstance(known, dict):
            named = {} if known is None else {"name": known}
            record["source"] = {
                "kind": "columns" if names.columns else conversation.shape(value),
                **origin.describe(),
                **named,
            }
            if license:
                record["source"]["license"] = license
        return provenance.stamp(record, "fetch")

    with jsonl.output(out) as output:
        files = expand.expanded("fetch", files, names, (out, rejects), quiet)
        counts = filtering.Rejects("fetch", rejects, files)
        values = itertools.islice(source.values(files, origin, names), limit)
        filtering.run(counts, values, work, options.Common(out, rejects, stats, quiet=quiet), write=output.write)
