"""`vtools fetch`: read files and URLs as records."""

import contextlib
import itertools
from typing import Annotated, Literal

import typer

from vtools import options, provenance
from vtools.fetch.limits import USUAL, Limits
from vtools.process import UsageFailure
from vtools.records import filtering, jsonl, naming, streams
from vtools.records.jsonl import Record


def fetch(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|FOLDER|URL|hf:OWNER/NAME|sharegpt:ID...]",
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
    listed: Annotated[
        str | None,
        typer.Option("--sources", metavar="FILE", help="Read more sources from this file, one per line; - is stdin."),
    ] = None,
    api_base: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this mirror of ShareGPT for sharegpt:ID, sharegpt:new and sharegpt:top."),
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

    Reads the exports of ChatGPT, Claude, Open WebUI and LM Studio, the logs of llm, saved pages of ChatGPT and
    ShareGPT, the usual data sets, and any JSONL, JSON (an array, objects over several lines, one list of turns per
    line) or parquet, plain or packed (gzip, bzip2, xz, zstd, zip, tar); --list-sources shows them all. The content
    tells what a file is, not its name. --columns names the columns of any other table, and reads CSV and TSV by their
    header; --role names other roles. Of a folder, all data files in it and below are read, sorted by name, and so are
    those of hf:OWNER/NAME[/PATH][@REVISION], a data set of Hugging Face's hub. ShareGPT's site is gone: sharegpt:ID
    and its lists, sharegpt:new and sharegpt:top, are asked from the mirror that --api-base names.

    Output is JSONL with OpenAI's `messages`; the `source` of a record holds its kind, its file or URL, the time of the
    download, the license, and the conversation's title and times. Tools that served an answer, its thoughts and its
    attachments are named beside it. An interrupted download is resumed. Unreadable input ends the run with exit status
    1, unless --rejects FILE collects it; so does input of which no record can be read.

    Servers are asked politely: by their robots.txt, once per second and host, over one connection, later when they say
    so; a host that fails five times in a row is left alone. A redirect to a private address, or from https to http, is
    refused, and so is a page that asks for a login or tests browsers. Proxies are those of the environment
    (HTTPS_PROXY, NO_PROXY). With --state, a rerun asks only for what has changed and writes only new conversations; a
    source that fails is a reject, and is asked again after a minute at first, later each time. A record is on stdout,
    or on disk in the file of --append, before the state has it: after a kill none is missing. Give a state the same
    --since, --sample and --branches each time, as a source that has not changed is not read again.

    \b
    Examples:
      vtools fetch sharegpt.json.gz --rejects rejects.jsonl > raw.jsonl
      vtools fetch https://example.org/chats.jsonl --license cc-by-4.0 -o raw.jsonl
      vtools fetch chatgpt-export.zip --since 2026-01-01 > raw.jsonl
      vtools fetch --sources list.txt --state crawl.db --append chats.jsonl --rejects rejects.jsonl
      vtools fetch data/ 'more/*.zip' --role helper=assistant > raw.jsonl
      vtools fetch faq.csv --columns user=question,assistant=answer > raw.jsonl
      echo '{"prompt": "Hi", "completion": "Hello!"}' | vtools fetch
    """
    from vtools.fetch import mirror, selection, source, sources
    from vtools.fetch.keeping import Keeping
    from vtools.records import expand

    if list_sources:
        return print(sources.table(), end="")
    _check(given, listed, state, append, wait, out, rejects, stats)
    names, origin = naming.parse(role, columns), source.Origin()
    licenses, earliest = selection.licenses(license, sources.NAMES), selection.date(since)
    wanted = list(given or ([] if listed else ["-"]))
    if listed:
        with streams.open_file(listed) as lines:
            wanted += source.listed(lines)
    wanted = mirror.addressed(wanted, api_base)
    limits = Limits(rate, timeout, max_seconds, max_bytes)
    if (limits != USUAL or jobs > 1) and not any(map(source.is_url, wanted)):
        limiting = "--rate, --jobs, --timeout, --max-seconds and --max-bytes"
        raise UsageFailure(f"{limiting} are for downloads, and no source is a URL")

    def work(value: Record) -> list[Record] | None:
        found = sources.read(value, names, branches)
        for record in found:
            if record["source"] is not value.get("source"):
                record["source"] = origin.describe(record["source"], licenses)
        new = [record for record in selection.since(found, earliest) if not keeping.knows(record)]
        return [provenance.stamp(record, "fetch") for record in new] or None

    with contextlib.ExitStack() as stack:
        keeping = stack.enter_context(Keeping.opened(state, append, out, wait))
        files = expand.expanded("fetch", wanted, names, (out, append, state, rejects), quiet, sources.KINDS)
        counts = filtering.Rejects("fetch", rejects, files)
        counts.goes_on = state is not None
        many = len(files) > 1
        tick = stack.enter_context(jsonl.progress("fetch", quiet or not many, len(files), " sources"))
        crawl = source.Crawl(limits, contact, counts, keeping, jobs, api_base or "", tick)
        values = selection.sampled(source.values(files, origin, crawl, names), sample, seed, counts)
        values = itertools.islice(values, limit)
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
