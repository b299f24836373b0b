# ruff: noqa: TID253  imported by the supervisor's children alone
"""What the supervisor's children share: how they begin, what they tell it, a server that it ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http import h11_impl

from vtools import process

HEADERS = 10.0  # seconds for those of a request
Tell = Callable[[dict[str, Any]], None]


def begin() -> tuple[dict[str, Any], Tell]:
    """The settings of this process, and a function that tells its parent something; it dies with its parent."""
    settings = json.loads(sys.argv[1])
    process.die_with_parent(settings["parent"])
    for signum in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the parent deals with them
        signal.signal(signum, signal.SIG_IGN)
    parent = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints

    def tell(what: dict[str, Any]) -> None:
        os.write(parent, orjson.dumps(what) + b"\n")

    return settings, tell


class Server(uvicorn.Server):
    """A server that says when it is up, and leaves signals to its owner."""

    def __init__(self, config: uvicorn.Config, up: Callable[[], None]) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._up()

    def capture_signals(self) -> Any:
        """Leave signals alone."""
        return contextlib.nullcontext()


class Protocol(h11_impl.H11Protocol):
    """A connection that must send the headers of a request in time: silent ones would take all file descriptors."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _expect(self) -> None:
        # Or it was answered before its body had come, which is then awaited no longer than headers are.
        answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is not h11_impl.h11.IDLE and not answered:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def config(application: Any, **more: Any) -> uvicorn.Config:
    """What all of these servers have in common."""
    return uvicorn.Config(
        application, loop="asyncio", lifespan="off", log_config=None, access_log=False, server_header=False, **more
    )
