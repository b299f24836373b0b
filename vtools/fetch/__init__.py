"""`vtools fetch`: read files and URLs as records."""

import itertools
from typing import Annotated

import typer

from vtools import options, provenance
from vtools.records import conversation, filtering, jsonl
from vtools.records.jsonl import Record


def fetch(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE|URL...]", help="Files or http(s) URLs; - is stdin (default).")
    ] = None,
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

    Input is JSONL, a JSON array or parquet, plain or compressed (gzip, zstd). A conversation has OpenAI `messages`,
    ShareGPT `conversations` or `items`, Alpaca `instruction`/`output`, or `prompt`/`completion`. Output is JSONL with
    OpenAI's `messages`; the `source` of a record holds its format, its file or URL, the time of the download and the
    license. An interrupted download is resumed. Unreadable input ends the run with exit status 1, unless --rejects FILE
    collects it.

    \b
    Examples:
      vtools fetch sharegpt.json.gz --rejects rejects.jsonl > raw.jsonl
      vtools fetch https://example.org/chats.jsonl --license cc-by-4.0 -o raw.jsonl
      echo '{"prompt": "Hi", "completion": "Hello!"}' | vtools fetch
    """
    from vtools.fetch import source

    origin = source.Origin()

    def work(value: Record) -> Record:
        record = conversation.read(value)
        known = record.get("source")
        if not isinstance(known, dict):
            named = {} if known is None else {"name": known}
            record["source"] = {"kind": conversation.shape(value), **origin.describe(), **named}
            if license:
                record["source"]["license"] = license
        return provenance.stamp(record, "fetch")

    with jsonl.output(out) as output:
        values = itertools.islice(source.values(sources or ["-"], origin), limit)
        counts = filtering.Rejects("fetch", rejects, sources or [])
        filtering.run(counts, values, work, options.Common(out, rejects, stats, quiet=quiet), write=output.write)
