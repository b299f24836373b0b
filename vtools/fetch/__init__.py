"""`vtools fetch`: read files and URLs as records."""

import contextlib
import itertools
from typing import Annotated

import typer

from vtools import options, provenance
from vtools.fetch.limits import USUAL, Limits
from vtools.process import UsageFailure
from vtools.records import conversation, filtering, jsonl, naming, streams
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
    listed: Annotated[
        str | None,
        typer.Option("--sources", metavar="FILE", help="Read more sources from this file, one per line; - is stdin."),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keep what was seen in this SQLite file; write only what is new or changed."),
    ] = None,
    append: Annotated[
        str | None, typer.Option(metavar="FILE", help="Add the records to this file, not to stdout; each stays whole.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait while another run has the state or the file; else exit with 75.")
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0.001, metavar="NUMBER", help="Ask each host at most so many times per second.")
    ] = USUAL.rate,
    jobs: options.Jobs = 1,
    timeout: options.Timeout = USUAL.timeout,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Stop a download that takes longer.")
    ] = USUAL.seconds,
    max_bytes: Annotated[int, options.number(min=1, help="Stop a download that is longer.")] = USUAL.size,
    contact: Annotated[
        str | None,
        typer.Option(
            metavar="URL|MAIL",
            envvar="VTOOLS_CONTACT",
            help="Name this to servers, so that their owners can reach you.",
        ),
    ] = None,
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

    Servers are asked politely: by their robots.txt, once per second and host, over one connection, later when they say
    so; a host that fails five times in a row is left alone. A redirect to a private address, or from https to http, is
    refused, and so is a page that asks for a login or tests browsers. Proxies are those of the environment
    (HTTPS_PROXY, NO_PROXY). With --state, a rerun asks only for what has changed and writes only new conversations; a
    source that fails is a reject, and is asked again after a minute at first, later each time. A record is on stdout,
    or on disk in the file of --append, before the state has it: after a kill none is missing.

    \b
    Examples:
      vtools fetch sharegpt.json.gz --rejects rejects.jsonl > raw.jsonl
      vtools fetch https://example.org/chats.jsonl --license cc-by-4.0 -o raw.jsonl
      vtools fetch --sources list.txt --state crawl.db --append chats.jsonl --rejects rejects.jsonl
      vtools fetch data/ 'more/*.zip' --role helper=assistant > raw.jsonl
      vtools fetch faq.csv --columns user=question,assistant=answer > raw.jsonl
      echo '{"prompt": "Hi", "completion": "Hello!"}' | vtools fetch
    """
    from vtools.fetch import source
    from vtools.fetch.keeping import Keeping
    from vtools.records import expand

    _check(sources, listed, state, append, wait, out, rejects, stats)
    names, origin = naming.parse(role, columns), source.Origin()
    given = list(sources or [])
    if listed:
        with streams.open_file(listed) as lines:
            given += source.listed(lines)
    limits = Limits(rate, timeout, max_seconds, max_bytes)
    if (limits != USUAL or jobs > 1) and not any(map(source.is_url, given)):
        limiting = "--rate, --jobs, --timeout, --max-seconds and --max-bytes"
        raise UsageFailure(f"{limiting} are for downloads, and no source is a URL")

    def work(value: Record) -> Record | None:
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
        return None if keeping.knows(record) else provenance.stamp(record, "fetch")

    with contextlib.ExitStack() as stack:
        keeping = stack.enter_context(Keeping.opened(state, append, out, wait))
        files = expand.expanded(
            "fetch", given or ([] if listed else ["-"]), names, (out, append, state, rejects), quiet
        )
        counts = filtering.Rejects("fetch", rejects, files)
        counts.goes_on = state is not None
        many = len(files) > 1
        tick = stack.enter_context(jsonl.progress("fetch", quiet or not many, len(files), " sources"))
        crawl = source.Crawl(limits, contact, counts, keeping, jobs, tick)
        values = itertools.islice(source.values(files, origin, crawl, names), limit)
        common = options.Common(out, rejects, stats, quiet=quiet)
        filtering.run(counts, values, work, common, write=keeping.write, progress=not many)


def _check(
    sources: list[str] | None, listed: str | None, state: str | None, append: str | None, wait: bool,
    out: str | None, rejects: str | None, stats: str | None,
) -> None:  # fmt: skip
    """Raise UsageFailure for options that contradict each other."""
    import os

    if out and (state or append):
        other = "--append" if append else "--state"
        raise UsageFailure(
            f"-o writes a file whole at the end, {other} keeps each record as it comes: use --append FILE"
        )
    if wait and not (state or append):
        raise UsageFailure("--wait waits for another run with the same --state or --append: name one")
    if listed == "-" and "-" in (sources or []):
        raise UsageFailure("stdin cannot be both a list of sources (--sources -) and a source (-)")
    used: dict[str, str] = {}
    given = {"--state": state, "--append": append, "--rejects": rejects, "--stats": stats, "--sources": listed}
    for option, path in given.items():
        if path and path != "-" and (other := used.setdefault(os.path.realpath(path), option)) != option:
            raise UsageFailure(f"{other} and {option} name the same file: {path}")
