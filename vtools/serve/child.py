# ruff: noqa: TID253  imported by the supervisor's children alone
"""What the supervisor's children share: how they begin, what they tell it, and a server that it ends."""

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

from vtools import process

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


def config(application: Any, **more: Any) -> uvicorn.Config:
    """What all of these servers have in common."""
    return uvicorn.Config(
        application, loop="asyncio", lifespan="off", log_config=None, access_log=False, server_header=False, **more
    )
