"""Downloads: each source from its first byte to its last, whatever its server does on the way."""
# ruff: noqa: TID253  imported only once there is a URL to fetch

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2

from vtools import __version__
from vtools.fetch import walls
from vtools.fetch.addresses import ELSEWHERE, Pinned, Refused
from vtools.fetch.host import AGENT, FAILURES, Host
from vtools.fetch.limits import Limits
from vtools.files.crawl_state import Source
from vtools.inference import retry
from vtools.process import Failure
from vtools.records.unpacking import Torn

TRIES = 5
REDIRECTS = 10
LONGEST_ROBOTS = 500 * 1024  # bytes of a robots.txt that are read, as RFC 9309 asks for at least


class Unavailable(Failure):
    """A source that gives nothing. `asked`: the seconds after which its server wants to be asked again, if it said so;
    `host`: whether that tells something of its host."""

    def __init__(self, message: str, asked: float | None = None, host: bool = False) -> None:
        super().__init__(message)
        self.asked, self.host = asked, host


class Broken(Torn):
    """A download that broke off because its host failed."""


class Session:
    """The hosts of one run. Thread-safe."""

    def __init__(self, limits: Limits, contact: str) -> None:
        """`contact` is a URL or an address, at which whoever runs a server reaches whoever runs this."""
        self._limits = limits
        self._headers = {"User-Agent": f"{AGENT}/{__version__} (+{contact})", "Accept-Encoding": "identity"}
        self._context = httpx2.create_ssl_context()
        self._hosts: dict[tuple[str, str, int | None], Host] = {}
        self._lock = threading.Lock()

    def read(self, source: Source) -> Iterator[bytes]:
        """The bytes of a source, and at their end in `source` how it went. If it has not changed, there are none.

        Raises Unavailable, and Torn if the rest cannot be had after some bytes.
        """
        try:
            host = self._host(httpx2.URL(source.uri))
        except httpx2.InvalidURL as error:
            raise Unavailable(str(error)) from None
        if host.failures >= FAILURES:
            raise Unavailable("not tried, because its host failed too often in this run")
        try:
            yield from self._body(source)
            host.failures = 0
        except Broken:
            host.failures += 1
            raise
        except Unavailable as error:
            host.failures = host.failures + 1 if error.host else 0
            if (error.asked or 0) > retry.LONGEST_WAIT:
                host.failures = FAILURES
            raise

    def _body(self, source: Source) -> Iterator[bytes]:
        """The bytes of a source; after a broken connection the rest is requested (RFC 9110, Range and If-Range)."""
        got, tries, validator = 0, 0, None
        digest = hashlib.blake2b(digest_size=16)
        deadline = time.monotonic() + self._limits.seconds
        while True:
            tries += 1
            headers = _range(got, validator) if got else _conditions(source)
            try:
                with self._response(source.uri, headers) as response:
                    if retry.is_transient(response.status_code):
                        raise _Again(
                            _status(response), retry.after(response.headers), walls.in_headers(response.headers)
                        )
                    if response.status_code == 304 and not got and headers:
                        source.went("unchanged")
                        return
                    if response.status_code == 416 and got and _total(response) == got:
                        break  # everything had arrived except the end of the stream
                    skip = self._begins(response, got, validator)
                    validator = _validator(response)
                    for chunk in _page(response):
                        fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                        if got + len(fresh) > self._limits.size:
                            raise _ended(got, f"it is longer than --max-bytes {self._limits.size}")
                        if time.monotonic() > deadline:
                            raise _ended(got, f"it takes longer than --max-seconds {self._limits.seconds:g}")
                        if fresh:
                            got, tries = got + len(fresh), 0
                            digest.update(fresh)
                            yield fresh
                    break
            except _Again as again:
                _rest(again, tries, got)
        same = source.digest == digest.digest()
        source.etag, source.modified = response.headers.get("etag"), response.headers.get("last-modified")
        source.digest = digest.digest()
        source.went("unchanged" if same else "fetched")

    def _begins(self, response: Any, got: int, validator: str | None) -> int:
        """How many bytes of a body are known already. Raises Unavailable or Torn if it is not what was asked for."""
        if response.status_code not in (200, 206):
            refused = response.status_code == 403
            wall = walls.in_headers(response.headers)
            raise _ended(got, f"{_status(response)}{f': {wall}' if wall else ''}", host=refused)
        if response.status_code == 206:
            if _start(response) != got:
                raise Torn(f"the server did not resume at byte {got}")
            return 0
        if got and validator and _validator(response) != validator:
            raise Torn(f"the file changed on the server after byte {got}")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.size:
            raise _ended(got, f"its {int(length):,} bytes are more than --max-bytes {self._limits.size}")
        return got

    @contextlib.contextmanager
    def _response(
        self, url: str, headers: dict[str, str], robots: bool = True, elsewhere: bool = False
    ) -> Iterator[Any]:
        """The response to a request, after all redirects. `elsewhere`: another server led to this URL.

        Raises Unavailable, and _Again if this, or what is done with the response, fails in a way that may pass.
        """
        target = httpx2.URL(url)
        for _ in range(REDIRECTS):
            host = self._host(target)
            if robots:
                self._obey(host, target, elsewhere)
            with host.turn() as client:
                request = client.build_request("GET", target, headers=headers, extensions={ELSEWHERE: elsewhere})
                try:
                    response = client.send(request, stream=True)
                    host.answered()
                    with contextlib.closing(response):
                        if not response.has_redirect_location:
                            yield response
                            return
                        following = _followed(target, response.headers["location"])
                except Refused as refused:
                    raise Unavailable(f"leads to {refused}, a private address, which only you may name") from None
                except _Again as again:
                    again.host = host
                    raise
                except httpx2.TransportError as error:
                    raise _Again.of(error, host, self._limits.timeout) from None
            elsewhere = elsewhere or _origin(following)[1:] != _origin(target)[1:]  # from http to https is still there
            target = following
        raise Unavailable(f"more than {REDIRECTS} redirects")

    def _obey(self, host: Host, url: Any, elsewhere: bool) -> None:
        """Read the robots.txt of a host, once, and raise Unavailable if it forbids a URL.

        Where there is none, everything is allowed; where it cannot be read, nothing (RFC 9309, 2.3.1).
        """
        place = url.copy_with(raw_path=b"/robots.txt", fragment=None)
        tries = 0
        while host.robots is None:
            tries += 1
            try:
                with self._response(str(place), {}, False, elsewhere) as response:
                    if retry.is_transient(response.status_code):
                        raise _Again(f"robots.txt: {_status(response)}", retry.after(response.headers))
                    found = response.status_code == 200
                    host.obey(_text(response, LONGEST_ROBOTS) if found else "")
            except _Again as again:
                _rest(again, tries, 0)
        if not host.robots.can_fetch(str(url), AGENT):
            raise Unavailable(f"{place} forbids it")

    def _host(self, url: Any) -> Host:
        scheme, name, port = _origin(url)
        with self._lock:
            if (scheme, name, port) not in self._hosts:
                transport = Pinned(scheme, name, self._context)
                client = httpx2.Client(transport=transport, timeout=self._limits.timeout, headers=self._headers)
                self._hosts[scheme, name, port] = Host(client, self._limits.rate)
            return self._hosts[scheme, name, port]

    def close(self) -> None:
        """Close the connections."""
        for host in self._hosts.values():
            host.client.close()


class _Again(Exception):
    """A request to a host that may be repeated so many times, after so many seconds if it said how many."""

    host: Host

    def __init__(self, why: str, asked: float | None = None, wall: str | None = None, allowed: int = TRIES) -> None:
        super().__init__(why)
        self.why = f"{why}: {wall}" if wall else why
        self.asked = asked
        self.allowed = 0 if wall else allowed

    @classmethod
    def of(cls, error: httpx2.TransportError, host: Host, timeout: float) -> "_Again":
        """What a connection's error means. A port that is closed, or a name that is not known, is asked once more."""
        allowed = TRIES
        if isinstance(error, httpx2.TimeoutException):
            allowed = retry.silences(timeout)
        elif isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol):
            allowed = 1
        again = cls(str(error) or type(error).__name__, allowed=allowed)
        again.host = host
        return again


def _rest(again: _Again, tries: int, got: int) -> None:
    """Have the host that failed rest until the next try. Raises Unavailable or Torn if there is none."""
    wait = retry.wait(tries - 1, min(TRIES - 1, again.allowed), again.asked or None, first=1.0)
    if wait is None:
        raise _ended(got, again.why, again.asked, host=True)
    again.host.rest(wait)


def _ended(got: int, why: str, asked: float | None = None, host: bool = False) -> Exception:
    if not got:
        return Unavailable(why, asked, host)
    return (Broken if host else Torn)(f"the download broke off at byte {got}: {why}")


def _page(response: Any) -> Iterator[bytes]:
    """The chunks of a body that is data; the first may be long, as a page is looked at before it is believed."""
    chunks = response.iter_raw()
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= walls.HEAD or not walls.is_page(head):
            break
    if wall := walls.in_page(head):
        raise Unavailable(f"{wall}, no data", host=True)
    yield head
    yield from chunks


def _followed(target: Any, location: str) -> Any:
    try:
        following = target.join(location)
    except (httpx2.InvalidURL, ValueError):
        raise Unavailable(f"redirects to {location!r}, which is no URL") from None
    if following.scheme not in ("http", "https"):
        raise Unavailable(f"redirects to {location!r}, which is not http(s)")
    if target.scheme == "https" and following.scheme == "http":
        raise Unavailable(f"redirects from https to {location}, which anyone on the way could read and change")
    return following


def _origin(url: Any) -> tuple[str, str, int | None]:
    if url.scheme not in ("http", "https") or not url.host:
        raise Unavailable("is no http(s) URL")
    return url.scheme, url.host, url.port


def _conditions(source: Source) -> dict[str, str]:
    """The headers that ask only for what has changed (RFC 9110, 13.1)."""
    found = {"If-None-Match": source.etag, "If-Modified-Since": source.modified}
    return {name: value for name, value in found.items() if value}


def _range(got: int, validator: str | None) -> dict[str, str]:
    return {"Range": f"bytes={got}-"} | ({"If-Range": validator} if validator else {})


def _text(response: Any, most: int) -> str:
    data = b""
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) >= most:
            break
    return data[:most].decode("utf-8", "replace")


def _status(response: Any) -> str:
    return f"HTTP {response.status_code} {response.reason_phrase}".rstrip()


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
