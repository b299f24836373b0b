# ruff: noqa: TID253  imported by the edge alone
"""A request to a worker and its response: HTTP/1.1 (h11) with a connection for each, which follows no redirect."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

import h11

SIZE = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class Remote:
    """A worker on another machine, by an address that was checked; `key` is what it wants to be shown."""

    address: str
    port: int
    tls: ssl.SSLContext | None
    key: str


class Exchange:
    """One request and its response. A connection that breaks off raises OSError or h11.RemoteProtocolError."""

    def __init__(self, place: str | Remote) -> None:
        """`place` is the path of a Unix socket, or a worker on another machine."""
        self._place = place
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, path: str, body: bytes) -> None:
        """Connect, and send this JSON."""
        headers = [("host", "worker"), ("content-type", "application/json"), ("content-length", str(len(body)))]
        if isinstance(self._place, str):
            self._reader, self._writer = await asyncio.open_unix_connection(self._place)
        else:
            remote = self._place
            self._reader, self._writer = await asyncio.open_connection(remote.address, remote.port, ssl=remote.tls)
            headers.append(("authorization", f"Bearer {remote.key}"))
        for event in (h11.Request(method="POST", target=path, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")

    async def whole(self, path: str, body: bytes, limit: int, seconds: float) -> tuple[Any, bytes]:
        """Post, and read the whole reply: its Response and its body.

        Raises ValueError if it has more than `limit` bytes, and TimeoutError if it takes longer than this.
        """
        async with asyncio.timeout(seconds):
            await self.post(path, body)
            response = await self.next()
            read = b""
            while isinstance(event := await self.next(), h11.Data):
                read += event.data
                if len(read) > limit:
                    raise ValueError(f"its reply has more than {limit} bytes")
            return response, read

    async def next(self) -> Any:
        """The next event: a Response, then Data, then EndOfMessage."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(SIZE))
        return event

    def close(self) -> None:
        """End the connection, and with it what the worker still does for it."""
        if self._writer is not None:
            self._writer.close()


def trusting(certificate: str) -> ssl.SSLContext:
    """TLS with a peer that has this very certificate (PEM), whoever issued it. Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate came with a signed lease, and no other will do
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=certificate)
    except ssl.SSLError as error:
        raise ValueError(f"the certificate in the lease is none ({error.reason})") from None
    return context
