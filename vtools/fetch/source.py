"""Files and URLs as raw values; an interrupted download is resumed."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vtools import __version__, provenance
from vtools.fetch import hub
from vtools.fetch.sources import KINDS, open_assistant
from vtools.inference import retry
from vtools.process import Failure
from vtools.records import streams
from vtools.records.naming import NONE, Names
from vtools.records.unpacking import Torn

TRIES = 5
LONGEST_WAIT = 60.0  # seconds


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


def values(sources: list[str], origin: Origin, names: Names = NONE) -> Iterator[streams.Value]:
    """The raw values of files and http(s) URLs, one after another; `origin` is updated as they come."""
    for name in sources:
        if name.startswith(("http://", "https://")):
            origin.uri, origin.fetched_at = name, provenance.now()
            yield from open_assistant.trees(streams.split(download(name), name, names, KINDS))
        elif name.startswith(hub.PREFIX):
            for file in hub.files(name, names, KINDS):
                origin.uri, origin.fetched_at, origin.license = file.uri, provenance.now(), file.license
                yield from open_assistant.trees(_renamed(streams.values(file.path, names, KINDS), file))
            origin.license = None
        else:
            origin.uri, origin.fetched_at = "stdin" if name == "-" else name, None
            yield from open_assistant.trees(streams.values(name, names, KINDS))


def _renamed(values: Iterator[streams.Value], file: hub.File) -> Iterator[streams.Value]:
    """The values as those of the file on the hub, not of its copy in the cache."""
    for value in values:
        yield value._replace(file=value.file.replace(file.path, file.uri, 1))


def download(url: str) -> Iterator[bytes]:
    """The bytes of a URL. After a broken connection it requests the rest (RFC 9110, Range and If-Range).

    Raises Failure if the server refuses, Torn if the rest cannot be fetched.
    """
    import httpx2

    got, tries, validator = 0, 0, None
    agent = {"User-Agent": f"vtools/{__version__}", "Accept-Encoding": "identity"}
    with httpx2.Client(follow_redirects=True, timeout=30.0, headers=agent) as client:
        while True:
            tries, asked = tries + 1, None
            headers = {"Range": f"bytes={got}-"} | ({"If-Range": validator} if validator else {}) if got else {}
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if response.status_code in (429, 500, 502, 503, 504) and tries < TRIES:
                        asked = min(retry.after(response.headers) or 0, LONGEST_WAIT) or None
                    elif response.status_code == 416 and _total(response) == got:
                        return  # everything had arrived except the end of the stream
                    elif response.status_code not in (200, 206):
                        raise _refused(url, got, f"HTTP {response.status_code} {response.reason_phrase}")
                    else:
                        skip = got if response.status_code == 200 else 0
                        if response.status_code == 206 and _start(response) != got:
                            raise Torn(f"the server did not resume at byte {got}")
                        if skip and validator and _validator(response) != validator:
                            raise Torn(f"the file changed on the server after byte {got}")
                        validator = _validator(response)
                        for chunk in response.iter_raw():
                            fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                            if fresh:
                                got += len(fresh)
                                tries = 0
                                yield fresh
                        return
            except (httpx2.TransportError, httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
                if tries >= TRIES or not isinstance(error, httpx2.TransportError):
                    raise _refused(url, got, str(error) or type(error).__name__) from None
                if isinstance(error, httpx2.UnsupportedProtocol | httpx2.ConnectError) and not got and tries >= 2:
                    raise _refused(url, got, str(error)) from None
            time.sleep(retry.wait(tries - 1, TRIES, asked, first=1.0) or 0)


def _refused(url: str, got: int, why: str) -> Exception:
    return Torn(f"the download broke off at byte {got}: {why}") if got else Failure(f"{url}: {why}")


def _start(response: Any) -> int | None:
    """The first byte of a partial response: `Content-Range: bytes 5-9/10`."""
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _total(response: Any) -> int | None:
    """The total length in a refused range: `Content-Range: bytes */10`."""
    found = re.match(r"bytes \*/(\d+)", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _validator(response: Any) -> str | None:
    tag = response.headers.get("etag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("last-modified")
