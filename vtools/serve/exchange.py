# ruff: noqa: TID253  imported by the edge alone
"""A request to a worker and its response: HTTP/1.1 (h11) over a Unix socket, with a connection for each."""

import asyncio
from typing import Any

import h11

SIZE = 1 << 16  # bytes


class Exchange:
    """One request and its response. A connection that breaks off raises OSError or h11.RemoteProtocolError."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, path: str, body: bytes) -> None:
        """Connect, and send this JSON."""
        self._reader, self._writer = await asyncio.open_unix_connection(self._socket)
        headers = [("host", "worker"), ("content-type", "application/json"), ("content-length", str(len(body)))]
        for event in (h11.Request(method="POST", target=path, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")

    async def next(self) -> Any:
        """The next event: a Response, then Data, then EndOfMessage."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(SIZE))
        return event

    def close(self) -> None:
        """End the connection, and with it what the worker still does for it."""
        if self._writer is not None:
            self._writer.close()
