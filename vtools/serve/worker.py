# ruff: noqa: TID253  a process of its own: it imports torch once it has started
"""A worker: one model in a process of its own, which answers token ids with token ids.

`python -m vtools.serve.worker SETTINGS` (a JSON object) serves the OpenAI completions API on a Unix socket, or on a
port for the edges that it joins, with vLLM's names for ids: `prompt` as ids, and `token_ids` in each chunk. On stdout
it says once that it is up, with its context length and the digest of its weights. It ends with its parent.
"""

import asyncio
import contextlib
import hmac
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NoReturn

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from vtools import machine
from vtools.inference.client import Sampling
from vtools.process import Failure, TryAgain, say
from vtools.serve import child

KEEPALIVE = 1.0  # seconds without a token after which a waiting request is told that the worker lives
HUNG = 300.0  # seconds for a forward pass: a worker that takes longer ends, and its answers go on in another
DRAIN = 0.5  # seconds for the edge to hear that it asks elsewhere
END = b"data: [DONE]\n\n"


class Worker:
    """The application around an engine."""

    def __init__(self, engine: Any, key: str | None = None, more: Sequence[Route] = ()) -> None:
        """`key` is what edges on other machines must show."""
        self._engine, self._key = engine, key
        self.in_flight = 0
        routes = [Route("/v1/completions", self._completions, methods=["POST"]), Route("/health", self._health), *more]
        self.application = Starlette(routes=routes)

    async def _health(self, request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    def knows(self, request: Request) -> bool:
        """Whether a request is of an edge that this worker has joined."""
        given = request.headers.get("authorization", "")
        return self._key is None or hmac.compare_digest(given.encode("latin-1"), f"Bearer {self._key}".encode())

    async def _completions(self, request: Request) -> Response:
        if not self.knows(request):
            return Response(status_code=401)
        asked = orjson.loads(await request.body())
        named = ("max_tokens", "temperature", "top_p", "seed", "logprobs")
        sampling = Sampling(**{name: asked[name] for name in named if name in asked})
        try:
            tokens = await asyncio.to_thread(self._engine.tokens, asked["prompt"], sampling)
        except Failure as failure:
            status = 503 if isinstance(failure, TryAgain) else 400
            return Response(orjson.dumps({"error": {"message": str(failure)}}), status, media_type="application/json")
        return StreamingResponse(self._counted(tokens), media_type="text/event-stream")

    async def _counted(self, tokens: Any) -> AsyncIterator[bytes]:
        self.in_flight += 1
        try:
            async with contextlib.aclosing(_events(tokens, self._engine)) as events:
                async for event in events:
                    yield event
        finally:
            self.in_flight -= 1


async def _events(tokens: Any, engine: Any) -> AsyncGenerator[bytes]:
    """The ids as server-sent events, as they come; generation ends when nobody listens any more."""
    loop = asyncio.get_running_loop()
    asked = time.monotonic()
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    def put(item: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def pump() -> None:
        try:
            for found in tokens:
                put((found, tokens.finish))
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=pump, name="pump", daemon=True).start()
    try:
        while True:
            try:
                found = await asyncio.wait_for(arrived.get(), KEEPALIVE)
            except TimeoutError:
                if time.monotonic() - max(asked, engine.stepped) > HUNG:
                    end(f"a forward pass takes longer than {HUNG:g} s")
                yield b": keepalive\n\n"
                continue
            if found is None:
                yield END
                return
            if isinstance(found, Exception):
                if not engine.running:
                    end(str(found))  # a new process is surer than a new start in this one
                yield b"data: " + orjson.dumps({"error": {"message": str(found)}}) + b"\n\n"
                return
            new, finish = found
            choice = {"index": 0, "text": "", "token_ids": [token.id for token in new], "finish_reason": finish}
            if any(token.logprob is not None for token in new):
                tops = [{str(number): value for number, value in token.top.items()} for token in new]
                choice["logprobs"] = {"token_logprobs": [token.logprob for token in new], "top_logprobs": tops}
            yield b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"
    finally:
        tokens.close()


def end(reason: str) -> NoReturn:
    """End this process at once; its answers go on elsewhere."""
    say("serve", f"worker {os.getpid()}: {reason}")
    os._exit(1)


def load(settings: dict[str, Any], tell: child.Tell) -> tuple[Any, dict[str, Any]]:
    """The engine and what is to be known of it; a failure is told, and ends the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until it is up
    machine.spin(machine.LONG_SPINS)
    machine.repeat_products()
    try:
        from vtools.inference.engine import Engine
        from vtools.models.reference import model_folder
        from vtools.weights.model_digest import digest

        named = ("template", "system", "dtype", "threads", "max_requests", "processes")
        engine = Engine(settings["model"], **{name: settings[name] for name in named})
        list(engine.tokens([0], Sampling(max_tokens=1, temperature=0)))  # a model that loads may still not run
        about = {
            "context": engine.context,
            "vocabulary": engine.vocabulary,
            "digest": digest(model_folder(settings["model"]), quiet=True),
        }
        return engine, about
    except Exception as error:
        reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        tell({"failed": reason})
        os._exit(1)


def main() -> None:
    """Load the model, say that the worker is up, and serve until the parent ends."""
    settings, tell = child.begin()
    engine, about = load(settings, tell)

    def drain(loop: asyncio.AbstractEventLoop) -> None:
        tell({"draining": True})
        loop.call_later(DRAIN, setattr, server, "should_exit", True)  # with the last answer

    def up() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, drain, loop)
        tell({"up": about})

    server = child.Server(config(Worker(engine), settings, uds=settings["socket"]), up)
    server.run()


def config(worker: Worker, settings: dict[str, Any], **more: Any) -> uvicorn.Config:
    """Of a worker's server."""
    grace = int(settings["grace"])
    return child.config(
        worker.application, http=child.Protocol, date_header=False, timeout_graceful_shutdown=grace, **more
    )


if __name__ == "__main__":
    main()
