"""Files and URLs as raw values, each source with its origin; a crawl notes in its state how each one went."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from vtools import provenance
from vtools.fetch import hub, mirror
from vtools.fetch.keeping import Keeping
from vtools.fetch.limits import Limits
from vtools.fetch.sources import KINDS, open_assistant
from vtools.files.crawl_state import Source
from vtools.process import Failure
from vtools.records import streams
from vtools.records.filtering import Rejects
from vtools.records.naming import NONE, Names
from vtools.records.unpacking import Torn

CONTACT = "vtools-chat on PyPI"


@dataclass
class Origin:
    """The origin of the value read last."""

    uri: str = ""
    fetched_at: str | None = None
    license: str | None = None

    def describe(self, known: dict[str, Any], licenses: Mapping[str, str]) -> dict[str, Any]:
        """A record's `source`, given what is known of it and the licenses that the user names by kind."""
        license = licenses.get(known["kind"]) or licenses.get("") or self.license
        here = {"uri": self.uri, "fetched_at": self.fetched_at, "license": license}
        return {"kind": known["kind"], **{key: item for key, item in here.items() if item}, **known}


def is_url(name: str) -> bool:
    """Whether a source is downloaded."""
    return name.startswith(("http://", "https://")) or name in mirror.LISTS


def listed(lines: Iterable[bytes]) -> list[str]:
    """The sources of a list, one per line; empty lines and those that begin with # are none."""
    names = (line.decode("utf-8", "surrogateescape").strip().removeprefix("\ufeff") for line in lines)
    return [name for name in names if name and not name.startswith("#")]


@dataclass
class Crawl:
    """What the sources of a run share."""

    limits: Limits
    contact: str | None
    counts: Rejects
    keeping: Keeping
    jobs: int = 1
    mirror: str = ""  # of ShareGPT
    tick: Callable[[], Any] = lambda: None

    def source(self, uri: str) -> Source:
        """What is known of a URL."""
        host = "the hub" if uri.startswith(hub.PREFIX) else urlsplit(uri).netloc.rpartition("@")[2]
        return self.keeping.state.source(uri, host) if self.keeping.state else Source(uri, host)

    def session(self) -> Any:
        """What downloads."""
        from vtools.fetch.session import Session

        return Session(self.limits, self.contact or CONTACT)


def values(names: list[str], origin: Origin, crawl: Crawl, columns: Names = NONE) -> Iterator[streams.Value]:
    """The raw values of all sources, in their order; `origin` is updated as they come.

    A URL that gives nothing is one value, which says why. When the value after it is asked for, a value is written.
    """
    sources: dict[int, Source] = {}
    for number, name in enumerate(names):
        if is_url(name) and name not in mirror.LISTS:
            sources[number] = crawl.source(name)
    asked = {number: source for number, source in sources.items() if not source.waits()}
    with contextlib.ExitStack() as stack:
        read: Callable[[int], Iterator[bytes]]
        if asked or not set(mirror.LISTS).isdisjoint(names):
            session = crawl.session()
            stack.callback(session.close)

            def read(number: int) -> Iterator[bytes]:
                return session.read(asked[number])

            if crawl.jobs > 1 and asked:
                from vtools.fetch.ahead import Ahead

                ahead = Ahead([(number, source.uri) for number, source in asked.items()], read, crawl.jobs)
                stack.callback(ahead.stop)
                read = ahead.chunks
        for number, name in enumerate(names):
            origin.license = None
            if number in asked:
                origin.uri, origin.fetched_at = name, provenance.now()
                yield from _crawled(asked[number], read(number), crawl, columns)
            elif number in sources:
                crawl.counts.extra["waiting"] += 1
            elif crawl.keeping.state and name.startswith(hub.PREFIX):
                yield from _kept_of_hub(name, origin, crawl, columns)
            elif name in mirror.LISTS:
                yield from _listed(name, session, origin, crawl, columns)
            else:
                try:
                    yield from _stored(name, origin, columns)
                except (OSError, Failure) as error:
                    if not crawl.counts.goes_on:
                        raise
                    why = getattr(error, "strerror", None) or str(error).removeprefix(f"{name}: ")
                    yield streams.Value(b"", name, 0, foreign=why, reason="unavailable")
            crawl.tick()


def _stored(name: str, origin: Origin, columns: Names) -> Iterator[streams.Value]:
    """The values of a file, or of a data set of the hub. Raises OSError and Failure."""
    if not name.startswith(hub.PREFIX):
        origin.uri, origin.fetched_at = "stdin" if name == "-" else name, None
        yield from open_assistant.trees(streams.values(name, columns, KINDS))
        return
    yield from _of_hub(name, origin, columns)


def _of_hub(name: str, origin: Origin, columns: Names, known: str | None = None) -> Iterator[streams.Value]:
    """The values of a data set, unless it is still at the commit that is known. Raises OSError and Failure."""
    for file in hub.files(name, columns, KINDS, known):
        origin.uri, origin.fetched_at, origin.license = file.uri, provenance.now(), file.license
        for value in open_assistant.trees(streams.values(file.path, columns, KINDS)):
            yield value._replace(file=value.file.replace(file.path, file.uri, 1))


def _kept_of_hub(name: str, origin: Origin, crawl: Crawl, columns: Names) -> Iterator[streams.Value]:
    """The values of a data set, if it has changed. When all are written, the state says how it went."""
    source = crawl.source(name)
    if source.waits():
        crawl.counts.extra["waiting"] += 1
        return
    torn, origin.uri = crawl.counts.reasons["torn_input"], ""
    try:
        yield from _of_hub(name, origin, columns, source.etag)
        source.went("fetched" if origin.uri else "unchanged")
        source.etag = origin.uri.rpartition("@")[2] or source.etag
        if crawl.counts.reasons["torn_input"] > torn:
            source.failed("its data is cut off")
            source.etag = None
    except (OSError, Failure) as error:
        why = str(error).removeprefix(f"{name}: ")
        source.failed(why)
        yield streams.Value(b"", name, 0, foreign=why, reason="unavailable")
    crawl.counts.extra["unchanged"] += source.status == "unchanged"
    crawl.keeping.settle(source)


def _listed(name: str, session: Any, origin: Origin, crawl: Crawl, columns: Names) -> Iterator[streams.Value]:
    """The values of all conversations in a list of a mirror of ShareGPT; the list is asked for as they are read."""
    from vtools.fetch.session import Unavailable

    def read(uri: str) -> bytes:
        return b"".join(session.read(Source(uri)))

    try:
        for uri in mirror.listed(name, crawl.mirror, read):
            source = crawl.source(uri)
            if source.waits():
                crawl.counts.extra["waiting"] += 1
                continue
            origin.uri, origin.fetched_at = uri, provenance.now()
            yield from _crawled(source, session.read(source), crawl, columns)
    except (Unavailable, Torn, ValueError) as error:
        why = f"no list of conversations: {error}" if isinstance(error, ValueError) else str(error)
        yield streams.Value(b"", name, 0, foreign=why, reason="unavailable")


def _crawled(source: Source, chunks: Iterator[bytes], crawl: Crawl, columns: Names) -> Iterator[streams.Value]:
    """The values of a URL. When all are written, the state says how it went."""
    from vtools.fetch.session import Unavailable

    torn = crawl.counts.reasons["torn_input"]
    broke: list[str] = []
    ended = False
    asked: float | None = None

    def noted() -> Iterator[bytes]:
        nonlocal ended
        try:
            yield from chunks
            ended = True
        except Torn as error:
            broke.append(str(error))
            raise

    try:
        yield from open_assistant.trees(streams.split(noted(), source.uri, columns, KINDS))
    except Unavailable as error:
        broke.append(str(error))
        asked = error.asked
        yield streams.Value(b"", source.uri, 0, foreign=str(error), reason="unavailable")
    if not broke and (not ended or crawl.counts.reasons["torn_input"] > torn):
        broke.append("its data is cut off, or of a kind that is not read")
    if broke:
        source.failed(broke[0], asked)
        source.etag = source.modified = source.digest = None
    crawl.counts.extra["unchanged"] += source.status == "unchanged"
    crawl.keeping.settle(source)
