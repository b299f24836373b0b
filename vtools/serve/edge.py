# ruff: noqa: TID253  a process of its own
"""The edge: the OpenAI API in a process of its own, in front of the workers.

Its supervisor passes the listening socket, and says on stdin which workers are up. Events go to stdout, as JSON lines.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http import h11_impl

from vtools import process
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.serve.admission import Admission, key
from vtools.serve.api import Api
from vtools.serve.metrics import Metrics
from vtools.serve.upstream import Model, Worker

HEADERS = 10.0  # seconds for those of a request


def main() -> None:
    """Serve until SIGTERM, then until the last answer has ended, or for as long as the settings say."""
    settings = json.loads(sys.argv[1])
    process.die_with_parent(settings["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is dealt with by the parent
    events = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints
    asyncio.run(_serve(settings, events))


async def _serve(settings: dict[str, Any], events: int) -> None:
    loop = asyncio.get_running_loop()

    def event(what: dict[str, Any]) -> None:
        os.write(events, orjson.dumps(what) + b"\n")

    models = {}
    metrics = Metrics(list(settings["models"]))
    for name, reference in settings["models"].items():
        template = load_template(settings["template"], load_tokenizer(reference), settings["system"])
        models[name] = (Model(name, metrics=metrics, stalled=lambda pid: event({"stalled": pid})), template)
    admitted = Admission(key(os.environb), settings["host"])
    api = Api(
        models, admission=admitted, origins=settings["origins"], most=settings["most"], event=event, metrics=metrics
    )
    server = _Server(
        uvicorn.Config(
            api.application, loop="asyncio", http=_Protocol, lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=1,
        )
    )  # fmt: skip
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = [loop.create_task(_listen(reader, {name: model for name, (model, _) in models.items()}))]

    async def drain() -> None:
        await api.drain(settings["grace"])
        server.should_exit = True

    loop.add_signal_handler(signal.SIGTERM, lambda: tasks.append(loop.create_task(drain())))
    server.started_hook = lambda: event({"up": {}})
    await server.serve(sockets=[socket.socket(fileno=settings["fd"])])
    event({"event": "drained"})


class _Protocol(h11_impl.H11Protocol):
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
        if self.conn.their_state is not h11_impl.h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """Signals are dealt with here, not by uvicorn."""

    started_hook: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_hook()

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


async def _listen(reader: asyncio.StreamReader, models: dict[str, Model]) -> None:
    """What the supervisor says of workers."""
    async for line in reader:
        said = json.loads(line)
        if up := said.get("up"):
            models[up["model"]].up(Worker.at(up["worker"], up["pid"], up["socket"]), up["context"], up["digest"])
        elif draining := said.get("draining"):
            models[draining["model"]].drain(draining["worker"])
        elif down := said.get("down"):
            await models[down["model"]].down(down["worker"])


if __name__ == "__main__":
    main()
