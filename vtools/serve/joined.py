# ruff: noqa: TID253  imported by the worker alone
"""A worker that has joined edges: it listens on a port, answers their challenge, and renews its leases with them."""

import asyncio
import dataclasses
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vtools.inference.identity import fingerprint
from vtools.serve import child, listen, signatures, template_files
from vtools.serve.beats import Beats
from vtools.serve.child import Tell
from vtools.serve.lease import BEAT, Lease
from vtools.serve.vetting import CHALLENGE, TEMPLATE, signed
from vtools.serve.worker import DRAIN, Worker, config, load

STUCK = 10.0  # seconds of one forward pass after which no lease is sent
TOLD = 2.0  # seconds for the edges to hear that the worker drains


class Joined:
    """A worker and its leases. `settings` name the edges to `join`, its `url`, and the address that it listens `at`."""

    def __init__(self, settings: dict[str, Any], engine: Any, about: dict[str, Any], tell: Tell) -> None:
        self._settings, self._engine, self._about, self._tell = settings, engine, about, tell
        self._token = signatures.token()
        certificate = settings["tls_cert"]
        self._lease = Lease(
            id=secrets.token_hex(8),
            model=settings["name"],
            url=settings["url"],
            key=secrets.token_urlsafe(32),
            fingerprint=fingerprint(about["digest"], engine.template),
            spot=settings["spot"],
            swap=settings["swap"],
            certificate=Path(certificate).read_text() if certificate else "",
            **about,
        )
        self._draining = self._preempted = False
        routes = [
            Route(CHALLENGE, self._challenge, methods=["POST"]),
            Route(TEMPLATE, self._template, methods=["POST"]),
        ]
        self._worker = Worker(engine, self._lease.key, routes)
        self._beats = Beats(settings["join"], self._token, self._now, lambda: self._drain("edge"))
        self._tasks: list[asyncio.Task[None]] = []

    def run(self) -> None:
        """Serve until it has drained."""
        tls = {"ssl_certfile": self._settings["tls_cert"], "ssl_keyfile": self._settings["tls_key"]}
        self._server = child.Server(config(self._worker, self._settings, **tls), self._up)
        self._server.run(sockets=[listen.shared(self._settings["at"])])

    def _up(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain, "parent")
        loop.add_signal_handler(signal.SIGUSR1, self._drain, "preempted")
        self._tasks += [loop.create_task(self._beats.run()), loop.create_task(self._move())]
        self._tell({"up": self._about})

    async def _move(self) -> None:
        """Show the parent that the loop runs, which a frozen one does not."""
        while True:
            self._tell({"moves": True})
            await asyncio.sleep(BEAT)

    def _now(self) -> dict[str, Any] | None:
        """The lease as it is now; None while the engine does not move."""
        if self._worker.in_flight and time.monotonic() - self._engine.stepped > STUCK:
            return None
        state = {"in_flight": self._worker.in_flight, "draining": self._draining, "preempted": self._preempted}
        return {**dataclasses.asdict(self._lease), **state}

    def _drain(self, why: str) -> None:
        """Say so to the edges, and end with the last answer."""
        if self._draining:
            return
        self._draining, self._preempted = True, why == "preempted"
        self._tell({"draining": True, "for_good": why == "edge"})

        async def end() -> None:
            try:
                async with asyncio.timeout(TOLD):
                    await self._beats.now()
            except TimeoutError:
                pass
            await asyncio.sleep(DRAIN)
            self._server.should_exit = True

        self._tasks.append(asyncio.get_running_loop().create_task(end()))

    async def _challenge(self, request: Request) -> Response:
        if not self._worker.knows(request):
            return Response(status_code=401)
        nonce = str(orjson.loads(await request.body())["nonce"])
        about = {"id": self._lease.id, **self._lease.served()}
        return Response(orjson.dumps(signed(self._token, nonce, about)), media_type="application/json")

    async def _template(self, request: Request) -> Response:
        if not self._worker.knows(request):
            return Response(status_code=401)
        files = await asyncio.to_thread(template_files.written, self._engine.template)
        return Response(orjson.dumps(files), media_type="application/json")


def main() -> None:
    """Load the model, join the edges, and serve until it has drained or the parent ends."""
    settings, tell = child.begin()
    engine, about = load(settings, tell)
    Joined(settings, engine, about, tell).run()


if __name__ == "__main__":
    main()
