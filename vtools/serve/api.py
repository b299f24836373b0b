# ruff: noqa: TID253  imported by the command alone, once it is about to serve
"""The OpenAI chat API over the engines of this process, as an ASGI application."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vtools.inference.engine import AnswerTooLong, Engine, EngineStopped, PromptTooLong, Stream
from vtools.process import say
from vtools.records.jsonl import Reject
from vtools.serve import body
from vtools.serve.admission import Admission
from vtools.serve.errors import SHOWN, ApiError, unsupported
from vtools.serve.openapi import openapi
from vtools.serve.parameters import CHAT, COMPLETIONS, Parameters, parse

CLIENT_GONE = 499  # nginx's status for it; appears only in our events

Event = Callable[[dict[str, Any]], None]


class Api:
    """The routes. Each model accepts at most `most` requests at a time, running and waiting."""

    def __init__(
        self, engines: dict[str, Engine], *, admission: Admission, origins: list[Middleware], most: int, event: Event
    ) -> None:
        self._engines, self._admission, self._most, self._event = engines, admission, most, event
        self._taken = dict.fromkeys(engines, 0)
        self._started = int(time.time())
        routes = [
            Route("/v1/chat/completions", self._answer(self._chat), methods=["POST"]),
            Route("/v1/completions", self._answer(self._completions), methods=["POST"]),
            Route("/v1/models", self._answer(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._answer(self._model), methods=["GET"]),
            Route("/openapi.json", self._answer(self._openapi), methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
        ]
        self.application = Starlette(routes=routes, middleware=origins, exception_handlers={HTTPException: _no_route})

    def _answer(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: only authorised clients reach it, and its errors have the API's shape."""

        async def answer(request: Request) -> Response:
            try:
                self._admission.check(request)
                return await handler(request)
            except ApiError as error:
                return _json(error.body(), error.status, error.headers)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                return _json(_failed(error).body(), 500)

        return answer

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok", "in_flight": sum(self._taken.values())})

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi())

    async def _models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._describe(name) for name in self._engines]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._engine(name)
        return _json(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        context = self._engines[name].context
        return {"id": name, "object": "model", "created": self._started, "owned_by": "vtools", "max_model_len": context}

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            known = ", ".join(self._engines)
            raise ApiError(
                404, f"no model {name[:SHOWN]!r}; choose one of {known}", code="model_not_found", param="model"
            )
        return self._engines[name]

    async def _chat(self, request: Request) -> Response:
        reply = _Reply(self._event)
        try:
            wanted = parse(await body.read(request), CHAT)
            _refuse_what_is_missing(wanted)
            engine = self._engine(wanted.model)
            reply.model = wanted.model
            if self._taken[wanted.model] >= self._most:
                later = {"retry-after": "1"}
                raise ApiError(
                    429, f"{wanted.model} has {self._most} requests already", code="queue_full", headers=later
                )
            self._taken[wanted.model] += 1
            reply.release = lambda: self._release(wanted.model)
            reply.stream = await run_in_threadpool(_begin, engine, wanted)
            if wanted.stream:
                return _Events(_chunks(reply, wanted), reply)
            return await _whole(request, reply, wanted)
        except ApiError as error:
            reply.close(error.status)
            raise
        except ClientDisconnect:  # before the end of its request
            reply.close(CLIENT_GONE)
            raise
        except Exception:
            reply.close(500)
            raise
        except BaseException:  # the task was cancelled
            reply.close(CLIENT_GONE)
            raise

    async def _completions(self, request: Request) -> Response:
        wanted = parse(await body.read(request), COMPLETIONS)
        self._engine(wanted.model)
        _refuse_what_is_missing(wanted)
        raise AssertionError("all completions are refused")

    def _release(self, model: str) -> None:
        self._taken[model] -= 1


class _Reply:
    """One chat request from its start to its event; closed exactly once, however it ends."""

    def __init__(self, event: Event) -> None:
        self.model: str | None = None
        self.stream: Stream | None = None
        self.release: Callable[[], None] = lambda: None
        self.status = CLIENT_GONE  # until the last byte is sent
        self._event = event
        self._began = time.monotonic()
        self._closed = False

    def usage(self) -> dict[str, int]:
        counts = self.stream.usage if self.stream else {"prompt_tokens": 0, "completion_tokens": 0}
        return {**counts, "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"]}

    def close(self, status: int) -> None:
        if self._closed:
            return
        self._closed = True
        if self.stream:
            self.stream.close()
        self.release()
        usage = self.usage()
        self._event(
            {
                "event": "request",
                "model": self.model,
                "status": status,
                "finish": self.stream.finish if self.stream else None,
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "ms": round((time.monotonic() - self._began) * 1000),
            }
        )


class _Events(StreamingResponse):
    """Server-sent events that close their reply even if the client leaves before the first."""

    def __init__(self, chunks: AsyncIterator[bytes], reply: _Reply) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.close(self._reply.status)


def _refuse_what_is_missing(wanted: Parameters) -> None:
    """Raise ApiError for what is valid, but not carried out yet."""
    if wanted.prompt:
        raise unsupported("prompt", "ask /v1/chat/completions")
    if wanted.n > 1:
        raise unsupported("n", "leave it out, or send 1")
    if wanted.logprobs is not None:
        raise unsupported("logprobs", "leave it out, or send false")


def _begin(engine: Engine, wanted: Parameters) -> Stream:
    try:
        return engine.stream(wanted.messages, wanted.sampling)
    except PromptTooLong as error:
        raise ApiError(400, str(error), code="context_length_exceeded", param="messages") from None
    except AnswerTooLong as error:
        raise ApiError(400, str(error), code="context_length_exceeded", param="max_tokens") from None
    except Reject as reject:
        raise ApiError(400, reject.detail, code=reject.reason, param="messages") from None
    except EngineStopped as error:
        raise _unavailable(error) from None


def _failed(error: Exception) -> ApiError:
    say("serve", f"{type(error).__name__}: {error}")
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def _unavailable(error: EngineStopped) -> ApiError:
    return ApiError(503, str(error), code="engine_stopped", headers={"retry-after": "1"})


async def _whole(request: Request, reply: _Reply, wanted: Parameters) -> Response:
    """The whole answer at once; generation stops if the client disconnects."""
    stream = reply.stream
    assert stream is not None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        stream.close()

    watcher = asyncio.create_task(watch())
    try:
        text = "".join([piece async for piece in _pieces(stream)])
    except EngineStopped as error:
        raise _unavailable(error) from None
    finally:
        watcher.cancel()
    if stream.finish is None:
        reply.close(CLIENT_GONE)
        return Response(status_code=CLIENT_GONE)
    reply.close(200)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": stream.finish}
    return _json({**_head("chat.completion", wanted.model), "choices": [choice], "usage": reply.usage()})


async def _chunks(reply: _Reply, wanted: Parameters) -> AsyncIterator[bytes]:
    """The answer as server-sent events. A stream that breaks off ends in an error and has no finish_reason."""
    stream = reply.stream
    assert stream is not None
    head = _head("chat.completion.chunk", wanted.model)
    usage = {"usage": None} if wanted.include_usage else {}

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for piece in _pieces(stream):
            yield chunk({"content": piece})
    except Exception as error:
        told = _unavailable(error) if isinstance(error, EngineStopped) else _failed(error)
        reply.status = told.status
        yield _data(told.body())
        return
    if stream.finish is None:
        return
    yield chunk({}, stream.finish)
    if wanted.include_usage:
        yield _data({**head, "choices": [], "usage": reply.usage()})
    reply.status = 200
    yield b"data: [DONE]\n\n"


async def _pieces(stream: Stream) -> AsyncIterator[str]:
    """A stream's pieces, read in a thread of its own. Raises what the stream raises."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    def put(item: str | Exception | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def pump() -> None:
        try:
            for piece in stream:
                put(piece)
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=pump, name="pump").start()  # ends when the stream is closed, at the latest with the engine
    while (item := await arrived.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:SHOWN]}: {error.detail}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        message += f"; use {allowed}"
    return _json(ApiError(error.status_code, message, code=code).body(), error.status_code, headers)
